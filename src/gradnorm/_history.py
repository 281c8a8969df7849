"""The history of measured steps: points on the device that span the run, read as rows on request.

Writing never synchronizes with the device; reading does, once.
"""

from __future__ import annotations

import csv
import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import _html
from ._errors import ArgumentError, missing_extra

if TYPE_CHECKING:
    from pandas import DataFrame

FIELDS = ("loss", "weight", "norm", "target", "rate")
"""`L_i`, `w_i`, `G_i`, `Ḡ r_i^α` and `r_i` of a step; `w_i` is the weight with which the step trained."""

COLUMNS = ("step", "task", *FIELDS)
"""The columns of `History.rows`."""

PAIRWISE_TASKS = 16
"""Maximum number of tasks for which cosines are recorded, as these are T² numbers per step."""

FEWEST_ROWS = 64
"""Points for which there is room from the start."""
TRACE = 32
"""Number of points that a notebook's table shows of each curve."""

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
    """The measured steps of a run, of whatever length, as at most `capacity` points.

    Up to `capacity` measured steps each one is kept. A longer run is thinned: of the measured steps every 2nd is kept,
    then every 4th, 8th, …, counted from the first, so that the points always span the whole run. The last measured step
    is always there. What is kept is exact; nothing is averaged.

    It is no part of `state_dict`: a resumed run records from where it resumes, and a run that is set back to an earlier
    step forgets what was recorded from that step on.

    Args:
        tasks: Task names.
        capacity: Maximum number of points; 0 keeps none.

    Examples:
        >>> import torch
        >>> history = History(["a", "b"], capacity=4)
        >>> for step in range(10):
        ...     history.append(StepRecord(step, torch.full((2, 5), float(step)), None))
        >>> history.steps
        [0, 4, 8, 9]
        >>> history.rows()[-1]
        {'step': 9, 'task': 'b', 'loss': 9.0, 'weight': 9.0, 'norm': 9.0, 'target': 9.0, 'rate': 9.0}
    """

    def __init__(self, tasks: Sequence[str], capacity: int) -> None:
        self.tasks = tuple(tasks)
        self.capacity = capacity
        self._values = _Points(capacity)
        self._cosines = _Points(capacity)

    def __len__(self) -> int:
        return len(self._values.steps)

    @property
    def steps(self) -> list[int]:
        """The indices of the recorded steps, ascending."""
        return list(self._values.steps)

    def append(self, record: StepRecord) -> None:
        """Record one measured step."""
        if not self.capacity:
            return
        self.rewind(record.step)
        self._values.append(record.step, record.values)
        if record.cosines is not None:
            self._cosines.append(record.step, record.cosines)

    def rewind(self, step: int) -> None:
        """Forget this step and all after it, as when an earlier state is loaded."""
        for points in (self._values, self._cosines):
            points.rewind(step)

    def rows(self) -> list[Row]:
        """One row per recorded step and task: `step`, `task` and the `FIELDS`, oldest first."""
        return [
            {"step": step, "task": task, **dict(zip(FIELDS, values, strict=True))}
            for step, table in zip(self._values.steps, self._values.read().tolist(), strict=True)
            for task, values in zip(self.tasks, table, strict=True)
        ]

    def cosines(self) -> list[Row]:
        """One row per step and pair of tasks: `step`, `first`, `second`, `cosine`.

        Of the steps for which cosines were computed, thinned as the others are; empty above 16 tasks.
        """
        return [
            {"step": step, "first": self.tasks[i], "second": self.tasks[j], "cosine": table[i][j]}
            for step, table in zip(self._cosines.steps, self._cosines.read().tolist(), strict=True)
            for i in range(len(self.tasks))
            for j in range(i + 1, len(self.tasks))
        ]

    def mean_cosines(self) -> Tensor | None:
        """[T, T], the mean of the recorded cosines, on the CPU; `None` if there are none."""
        if not self._cosines.steps:
            return None
        return self._cosines.read().nanmean(0).cpu().fill_diagonal_(1.0)

    def lowest_weights(self) -> list[float]:
        """[T], the lowest weight of each task in any step, recorded or not; inf for tasks that were never there."""
        lowest = self._values.lowest()
        return [math.inf] * len(self.tasks) if lowest is None else lowest[:, FIELDS.index("weight")].tolist()

    def to_pandas(self) -> DataFrame:
        """`rows()` as a data frame: one row per recorded step and task.

        Raises:
            ImportError: pandas is not installed.

        Examples:
            >>> import torch
            >>> history = History(["a", "b"], capacity=10)
            >>> history.append(StepRecord(0, torch.ones(2, 5), None))
            >>> history.to_pandas().pivot(index="step", columns="task", values="weight").loc[0].to_dict()
            {'a': 1.0, 'b': 1.0}
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise missing_extra("pandas", "pandas") from error
        return DataFrame(self.rows(), columns=list(COLUMNS))

    def _title(self) -> str:
        spanned = f", from {self.steps[0]:,} to {self.steps[-1]:,}" if self.steps else ""
        return f"{len(self):,} recorded steps{spanned}"

    def __repr__(self) -> str:
        return f"History({', '.join(self.tasks)}: {self._title()})"

    def _repr_html_(self) -> str:
        title = self._title()
        if not self.steps:
            return _html.document(title, [])
        values = self._values.read()
        count = min(TRACE, len(values))
        shown = values[[place * (len(values) - 1) // max(1, count - 1) for place in range(count)]].cpu()
        columns, beside = {"task": list(self.tasks)}, {}
        for place, field in enumerate(FIELDS):
            curves = shown[:, :, place].T.tolist()
            last = [next((value for value in reversed(curve) if value == value), math.nan) for curve in curves]
            columns[field] = ["–" if value != value else f"{value:.3g}" for value in last]
            if field in ("loss", "weight"):
                each = [max((value for value in curve if math.isfinite(value)), default=0.0) for curve in curves]
                most = each if field == "loss" else [max(each)] * len(each)  # losses have units of their own
                beside[field] = [_html.trace(curve, top) for curve, top in zip(curves, most, strict=True)]
        return _html.document(f"{title}; weights are those that a step trained with", [_html.table(columns, beside)])

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
            history.append(StepRecord(step, _tensor([*table.values()]), None))
        return history


class _Points:
    """Entries of equal shape on the device, thinned to at most `capacity`.

    Of n entries those at multiples of the stride are kept, and the last one, which the next overwrites unless it is at
    a multiple itself. Where they are is decided by counting on the host: an entry costs one copy.
    """

    def __init__(self, capacity: int) -> None:
        self.steps: list[int] = []
        self._capacity = capacity
        self._count = 0
        self._stride = 1
        self._buffer: Tensor | None = None
        self._lowest: Tensor | None = None

    def append(self, step: int, entry: Tensor) -> None:
        place = -(-self._count // self._stride)
        if place == self._capacity > 1:
            self._halve()
            place = -(-self._count // self._stride)
        place = min(place, self._capacity - 1)  # a capacity of 1 keeps the last entry
        self._count += 1
        if self._buffer is None:
            self._buffer = entry.new_empty(min(self._capacity, FEWEST_ROWS), *entry.shape)
        elif self._buffer.device != entry.device:
            self._buffer = self._buffer.to(entry.device)
        if place == len(self._buffer):
            more = min(self._capacity - place, place)
            self._buffer = torch.cat([self._buffer, self._buffer.new_empty(more, *entry.shape)])
        here = self._buffer[place]
        if place < len(self.steps):
            self._drop(here)
        here.copy_(entry)
        self.steps[place:] = [step]

    def rewind(self, step: int) -> None:
        """Forget the entries from this step on, if there are any."""
        if self.steps and self.steps[-1] >= step:
            del self.steps[bisect_left(self.steps, step) :]
            self._stride = self._stride if self.steps else 1
            self._count = (len(self.steps) - 1) * self._stride + 1  # the last one, which may be at no multiple, is gone

    def read(self) -> Tensor:
        """[n, …], the entries, oldest first."""
        return _tensor([]) if self._buffer is None else self._buffer[: len(self.steps)]

    def lowest(self) -> Tensor | None:
        """[…], the minimum of each number over all entries, kept or not, but NaN; `None` if there was none."""
        if self._buffer is None:
            return None
        kept = _minimum(self.read())
        return kept if self._lowest is None else torch.fmin(kept, self._lowest.to(kept.device))

    def _halve(self) -> None:
        assert self._buffer is not None
        self._drop(_minimum(self._buffer))
        self._stride *= 2
        self.steps = self.steps[::2]
        self._buffer[: len(self.steps)] = self._buffer[::2].clone()

    def _drop(self, entry: Tensor) -> None:
        self._lowest = entry.clone() if self._lowest is None else torch.fmin(entry, self._lowest.to(entry.device))


def _tensor(values: Sequence[Sequence[float]]) -> Tensor:
    """Whatever the default type and device are."""
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _minimum(entries: Tensor) -> Tensor:
    return torch.where(entries.isnan(), math.inf, entries).amin(0)


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(row.values() for row in rows)


def _write_jsonl(path: Path, rows: list[Row]) -> None:
    lines = (json.dumps({name: _jsonable(value) for name, value in row.items()}, allow_nan=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _jsonable(value: float | str) -> float | str | None:
    """JSON has no NaN and no infinity: null, and a text that `float` reads."""
    if isinstance(value, str) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


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
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _read_parquet(path: Path) -> list[Any]:
    return _pyarrow().parquet.read_table(path).to_pylist()


def _tables(rows: list[Any]) -> dict[int, dict[str, list[float]]]:
    """The `FIELDS` by step and task; every step must have the tasks of the first.

    Raises:
        KeyError, TypeError, ValueError: The rows are not those of a history.
    """
    tables: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        values = (row[field] for field in FIELDS)
        numbers = [math.nan if value is None else float(value) for value in values]
        tables.setdefault(int(row["step"]), {})[str(row["task"])] = numbers
    for step, table in tables.items():
        if list(table) != list(tables[next(iter(tables))]):
            raise ValueError(f"step {step} has other tasks than the first")
    return tables
