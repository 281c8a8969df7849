"""The history of measured steps: a ring buffer on the device, read as rows on request.

Writing never synchronizes with the device; reading does, once.
"""

from __future__ import annotations

import csv
import json
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._errors import ArgumentError, missing_extra

FIELDS = ("loss", "weight", "norm", "target", "rate")
"""`L_i`, `w_i`, `G_i`, `Ḡ r_i^α` and `r_i` of a step; `w_i` is the weight with which the step trained."""

COLUMNS = ("step", "task", *FIELDS)
"""The columns of `History.rows`."""

PAIRWISE_TASKS = 16
"""Maximum number of tasks for which cosines are recorded, as these are T² numbers per step."""

Row = dict[str, int | float | str]


class StepRecord(NamedTuple):
    """One measured step.

    Attributes:
        step: Index of the step.
        values: [T, 5], the `FIELDS` of each task; NaN where a task was absent.
        cosines: [T, T] between the tasks' gradients; `None` if they were not taken.
    """

    step: int
    values: Tensor
    cosines: Tensor | None


class History:
    """The last `capacity` measured steps.

    Args:
        tasks: Task names.
        capacity: Number of steps to keep; 0 keeps none.

    Examples:
        >>> import torch
        >>> history = History(["a", "b"], capacity=10)
        >>> history.append(StepRecord(0, torch.ones(2, 5), None))
        >>> history.rows()[0]
        {'step': 0, 'task': 'a', 'loss': 1.0, 'weight': 1.0, 'norm': 1.0, 'target': 1.0, 'rate': 1.0}
    """

    def __init__(self, tasks: Sequence[str], capacity: int) -> None:
        self.tasks = tuple(tasks)
        self.capacity = capacity
        self._steps: deque[int] = deque(maxlen=capacity)
        self._with_cosines: deque[int] = deque(maxlen=capacity)
        self._written = 0
        self._values: Tensor | None = None
        self._cosines: Tensor | None = None
        self._lowest: Tensor | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, record: StepRecord) -> None:
        """Record one step."""
        if not self.capacity:
            return
        self._values = self._write(self._values, record.values)
        if record.cosines is not None:
            self._cosines = self._write(self._cosines, record.cosines)
            self._with_cosines.append(record.step)
        self._steps.append(record.step)
        self._written += 1
        if self._written % self.capacity == 0:  # all of it will be overwritten
            self._lowest = self._lowest_weights()

    def rows(self) -> list[Row]:
        """One row per step and task: `step`, `task` and the `FIELDS`, oldest first."""
        return [
            {"step": step, "task": task, **dict(zip(FIELDS, values, strict=True))}
            for step, table in zip(self._steps, self._read(self._values), strict=True)
            for task, values in zip(self.tasks, table, strict=True)
        ]

    def cosines(self) -> list[Row]:
        """One row per step and pair of tasks: `step`, `first`, `second`, `cosine`.

        Of the steps for which cosines were taken; empty above 16 tasks.
        """
        if self._cosines is None:
            return []
        return [
            {"step": step, "first": self.tasks[i], "second": self.tasks[j], "cosine": table[i][j]}
            for step, table in zip(self._steps, self._read(self._cosines), strict=True)
            if step in self._with_cosines
            for i in range(len(self.tasks))
            for j in range(i + 1, len(self.tasks))
        ]

    def lowest_weights(self) -> list[float]:
        """[T], the lowest weight of each task in any step, overwritten or not; inf for tasks that were never there."""
        lowest = self._lowest_weights()
        return [math.inf] * len(self.tasks) if lowest is None else lowest.tolist()

    def _lowest_weights(self) -> Tensor | None:
        if self._values is None:
            return None
        weights = self._values[..., FIELDS.index("weight")]
        lowest = torch.where(weights.isnan(), math.inf, weights).amin(0)
        return lowest if self._lowest is None else torch.minimum(lowest, self._lowest.to(lowest.device))

    def save(self, path: str | Path) -> None:
        """Write `rows()` to a `.csv`, `.jsonl` or `.parquet` file.

        Raises:
            ArgumentError: Another suffix.
            ImportError: `.parquet` without pyarrow.
        """
        path = Path(path)
        writers = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
        if path.suffix not in writers:
            raise ArgumentError(f"path must end in .csv, .jsonl or .parquet, got {path.name!r}")
        writers[path.suffix](path, self.rows())

    @classmethod
    def load(cls, path: str | Path) -> History:
        """The history that `save` wrote to a `.csv`, `.jsonl` or `.parquet` file, without its cosines.

        Raises:
            ArgumentError: Another suffix, or a file without the columns of `rows()`.
            ImportError: `.parquet` without pyarrow.
        """
        path = Path(path)
        readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
        if path.suffix not in readers:
            raise ArgumentError(f"path must end in .csv, .jsonl or .parquet, got {path.name!r}")
        try:
            tables = _tables(readers[path.suffix](path))
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"path must be a file that History.save wrote, one row per step and task with the columns "
                f"{', '.join(COLUMNS)}; {path.name!r} is none ({type(error).__name__}: {error})"
            ) from None
        history = cls(list(next(iter(tables.values()), ())), capacity=len(tables))
        for step, table in tables.items():
            history.append(StepRecord(step, torch.tensor([*table.values()], dtype=torch.float64), None))
        return history

    def _write(self, ring: Tensor | None, entry: Tensor) -> Tensor:
        if ring is None or ring.device != entry.device:
            fresh = entry.new_full((self.capacity, *entry.shape), torch.nan)
            ring = fresh if ring is None else fresh.copy_(ring)
        ring[self._written % self.capacity].copy_(entry)
        return ring

    def _read(self, ring: Tensor | None) -> list[list[list[float]]]:
        if ring is None:
            return []
        oldest = self._written % self.capacity if len(self) == self.capacity else 0
        return ring.roll(-oldest, 0)[: len(self)].tolist()


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(row.values() for row in rows)


def _write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_parquet(path: Path, rows: list[Row]) -> None:
    pyarrow = _pyarrow()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet") from error
    return pyarrow


def _read_csv(path: Path) -> list[Any]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _read_parquet(path: Path) -> list[Any]:
    return _pyarrow().parquet.read_table(path).to_pylist()


def _tables(rows: list[Any]) -> dict[int, dict[str, list[float]]]:
    """The `FIELDS` by step and task; every step must have the tasks of the first.

    Raises:
        KeyError, TypeError, ValueError: The rows are not those of a history.
    """
    tables: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        tables.setdefault(int(row["step"]), {})[str(row["task"])] = [float(row[field]) for field in FIELDS]
    for step, table in tables.items():
        if list(table) != list(tables[next(iter(tables))]):
            raise ValueError(f"step {step} has other tasks than the first")
    return tables
