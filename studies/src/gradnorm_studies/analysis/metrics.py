"""The metrics of a study's runs: rows in long format on disk, series by name in memory."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Row = tuple[int, str, float]
"""Step, quantity, value; a quantity is `weight/TASK`, `loss/TASK`, or a name that the study's `evaluate` gives: on the
test data as it is, on the validation data after `VALIDATION`."""

VALIDATION = "validation/"

Key = tuple[str, str, int]
"""Problem, method, seed of one run."""

UNITS = ("%", "m", "°")
"""What the name of a quantity may end with."""

COLUMNS = ("problem", "method", "seed", "step", "quantity", "value")


@dataclass(frozen=True)
class Quantity:
    """A recorded quantity, and how to read it."""

    name: str
    largest: bool = False
    """Whether the largest value is the best."""

    @property
    def label(self) -> str:
        """The name for an axis, with its unit in parentheses.

        Examples:
            >>> Quantity("depth RMS m").label, Quantity("error %").label, Quantity("mean error").label
            ('depth RMS (m)', 'error (%)', 'mean error')
        """
        name, unit = self._parts()
        return f"{name} ({unit})" if unit else name

    def measured(self, value: float) -> str:
        """The quantity and a value, for a sentence.

        Examples:
            >>> Quantity("depth RMS m").measured(0.25), Quantity("mean error").measured(0.1)
            ('depth RMS 0.25 m', 'mean error 0.1')
        """
        name, unit = self._parts()
        return f"{name} {value:.3g} {unit}".rstrip()

    def _parts(self) -> tuple[str, str]:
        """The name and its unit."""
        name, _, unit = self.name.rpartition(" ")
        return (name, unit) if unit in UNITS else (self.name, "")

    def gain(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Gain of `ours` over `theirs` in percent; negative is worse.

        Examples:
            >>> Quantity("error").gain(np.array([0.5]), np.array([1.0]))
            array([50.])
        """
        return (1 if self.largest else -1) * 100 * (ours - theirs) / np.abs(theirs)


class MissingRunError(KeyError):
    """A method was not run on a problem."""


class Metrics:
    """All series of a study, by problem, method and quantity; the first axis is always the seed.

    Args:
        runs: The records of each run.
        results: The steps whose records are the runs' results. Default: the last ones.
    """

    def __init__(self, runs: dict[Key, list[Row]], results: Mapping[Key, int] | None = None) -> None:
        self._results = results
        self._series: dict[tuple[Key, str], list[tuple[int, float]]] = {}
        self._runs = runs
        for key, rows in runs.items():
            for step, quantity, value in rows:
                self._series.setdefault((key, quantity), []).append((step, value))

    def methods(self, problem: str) -> list[str]:
        """The methods that were run on `problem`, in order of their first run."""
        return list(dict.fromkeys(method for name, method, _ in self._runs if name == problem))

    def quantities(self, problem: str) -> set[str]:
        """All quantities that were recorded on `problem`."""
        return {quantity for (key, quantity) in self._series if key[0] == problem}

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
        """[seeds, R], a quantity over time.

        Raises:
            MissingRunError: The method was not run, or what the quantity is derived from.
        """
        seeds = self.seeds(problem, method)
        if not seeds:
            raise MissingRunError(f"{method} was not run on {problem}")
        if quantity not in self.quantities(problem):
            raise MissingRunError(f"{quantity} is not known of the runs on {problem}")
        return np.array([[v for _, v in self._series[(problem, method, seed), quantity]] for seed in seeds])

    def final(self, problem: str, method: str, quantity: str) -> NDArray[np.float64]:
        """[seeds], a quantity of each run's result, by default at its end."""
        found = self.series(problem, method, quantity)
        if self._results is None:
            return found[:, -1]
        steps = self.steps(problem, method, quantity)
        wanted = [self._results[problem, method, seed] for seed in self.seeds(problem, method)]
        at = np.searchsorted(steps, wanted, "right") - 1
        return found[np.arange(len(found)), np.maximum(at, 0)]

    def renamed(self, problem: str, method: str, name: str, drop: Sequence[str] = ()) -> Metrics:
        """These metrics with a method's runs also under another name, and without the methods in `drop`."""
        kept = {key: key for key in self._runs if key[0] != problem or key[1] not in drop}
        sources = {**kept, **{(problem, name, seed): (problem, method, seed) for seed in self.seeds(problem, method)}}
        results = self._results and {key: self._results[source] for key, source in sources.items()}
        return Metrics({key: self._runs[source] for key, source in sources.items()}, results)

    def derived(
        self, name: str, sources: Sequence[str], formula: Callable[[Key, dict[str, float]], float], problem: str
    ) -> Metrics:
        """These metrics and a new quantity, `formula(key, values of the sources)`, at every record of a problem."""
        runs = {}
        for key, rows in self._runs.items():
            at: dict[int, dict[str, float]] = {}
            for step, quantity, value in rows if key[0] == problem else []:
                if quantity in sources:
                    at.setdefault(step, {})[quantity] = value
            runs[key] = rows + [(step, name, formula(key, values)) for step, values in at.items()]
        return Metrics(runs, self._results)

    def with_gains(self, name: str, problem: str, qualities: Sequence[Quantity], reference: str = "single") -> Metrics:
        """Add the mean over `qualities` of the gain over the reference's result with the same seed, in percent.

        Where the reference was not run, nothing is added.
        """
        if reference not in self.methods(problem):
            return self
        ends = [self.final(problem, reference, quality.name).tolist() for quality in qualities]
        references = dict(zip(self.seeds(problem, reference), zip(*ends, strict=True), strict=True))

        def gained(key: Key, row: dict[str, float]) -> float:
            pairs = zip(qualities, references[key[2]], strict=True)
            gains = [
                (1 if quality.largest else -1) * (row[quality.name] / end - 1) if end else math.nan
                for quality, end in pairs
            ]
            return 100 * sum(gains) / len(gains)

        return self.derived(name, [quality.name for quality in qualities], gained, problem)

    def late(self, share: float) -> Metrics:
        """Smoothed ends: the last record of each quantity is the mean over the last `share` of its records.

        The last record always counts, so a share of 0 changes nothing.
        """
        runs: dict[Key, list[Row]] = {key: [] for key in self._runs}
        for (key, quantity), series in self._series.items():
            last = [value for _, value in series[-max(1, round(share * len(series))) :]]
            ends = [*series[:-1], (series[-1][0], sum(last) / len(last))]
            runs[key] += [(step, quantity, value) for step, value in ends]
        return Metrics(runs)

    def best(self, criterion: Quantity) -> Metrics:
        """These metrics, with the record at which `criterion` is best on validation data as the result of each run."""
        results = {}
        for key, rows in self._runs.items():
            seen = [(value, step) for step, name, value in rows if name == VALIDATION + criterion.name]
            known = [(value, step) for value, step in seen if math.isfinite(value)] or seen
            _, results[key] = (max if criterion.largest else min)(known, key=lambda pair: pair[0])
        return Metrics(self._runs, results)

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
