"""The metrics of a study's runs: rows in long format on disk, series by name in memory."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Row = tuple[int, str, float]
"""Step, quantity, value; a quantity is `weight/TASK`, `loss/TASK`, or a name that the study's `evaluate` gives."""

Key = tuple[str, str, int]
"""Problem, method, seed of one run."""

COLUMNS = ("problem", "method", "seed", "step", "quantity", "value")


class Metrics:
    """All series of a study, by problem, method and quantity; the first axis is always the seed."""

    def __init__(self, runs: dict[Key, list[Row]]) -> None:
        self._series: dict[tuple[Key, str], list[tuple[int, float]]] = {}
        self._runs = runs
        for key, rows in runs.items():
            for step, quantity, value in rows:
                self._series.setdefault((key, quantity), []).append((step, value))

    def methods(self, problem: str) -> list[str]:
        """The methods that were run on `problem`, in order of their first run."""
        return list(dict.fromkeys(method for name, method, _ in self._runs if name == problem))

    def seeds(self, problem: str, method: str) -> list[int]:
        """The seeds of a method's runs, ascending."""
        return sorted(seed for name, other, seed in self._runs if (name, other) == (problem, method))

    def tasks(self, problem: str, method: str) -> tuple[str, ...]:
        """The tasks whose weights were recorded, in order."""
        runs = (rows for (name, other, _), rows in self._runs.items() if (name, other) == (problem, method))
        weights = (quantity for _, quantity, _ in next(runs) if quantity.startswith("weight/"))
        return tuple(dict.fromkeys(quantity.removeprefix("weight/") for quantity in weights))

    def steps(self, problem: str, method: str, quantity: str) -> NDArray[np.float64]:
        """[R], the steps at which a quantity was recorded."""
        seed = self.seeds(problem, method)[0]
        return np.array([step for step, _ in self._series[(problem, method, seed), quantity]], dtype=float)

    def series(self, problem: str, method: str, quantity: str) -> NDArray[np.float64]:
        """[seeds, R], a quantity over time."""
        seeds = self.seeds(problem, method)
        return np.array([[v for _, v in self._series[(problem, method, seed), quantity]] for seed in seeds])

    def final(self, problem: str, method: str, quantity: str) -> NDArray[np.float64]:
        """[seeds], a quantity at the end of each run."""
        return self.series(problem, method, quantity)[:, -1]

    def renamed(self, problem: str, method: str, name: str, drop: Sequence[str] = ()) -> Metrics:
        """These metrics with a method's runs also under another name, and without the methods in `drop`."""
        kept = {key: rows for key, rows in self._runs.items() if key[0] != problem or key[1] not in drop}
        copies = {(p, name, seed): rows for (p, m, seed), rows in self._runs.items() if (p, m) == (problem, method)}
        return Metrics({**kept, **copies})

    def derived(
        self, name: str, sources: tuple[str, ...], formula: Callable[[int, dict[str, float]], float]
    ) -> Metrics:
        """These metrics and a new quantity, `formula(seed, values of the sources)`, at every recorded step of a run."""
        runs = {}
        for key, rows in self._runs.items():
            at: dict[int, dict[str, float]] = {}
            for step, quantity, value in rows:
                if quantity in sources:
                    at.setdefault(step, {})[quantity] = value
            runs[key] = rows + [(step, name, formula(key[2], values)) for step, values in at.items()]
        return Metrics(runs)

    def late(self, share: float) -> Metrics:
        """Smoothed ends: the mean of each quantity over the last `share` of a run's records, as the only record.

        The last record always counts, so a share of 0 is the plain end.
        """
        runs: dict[Key, list[Row]] = {key: [] for key in self._runs}
        for (key, quantity), series in self._series.items():
            last = series[-max(1, round(share * len(series))) :]
            runs[key].append((series[-1][0], quantity, sum(value for _, value in last) / len(last)))
        return Metrics(runs)

    def write_csv(self, path: Path) -> None:
        """Write every row, one per line, in the order of `COLUMNS`."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(self._lines())

    def _lines(self) -> Iterable[tuple[object, ...]]:
        for key, rows in self._runs.items():
            for row in rows:
                yield (*key, *row)
