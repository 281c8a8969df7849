"""Progress in the terminal: a live board there, and where output is piped one plain line per finished run."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from gradnorm_studies.analysis.metrics import Key
from gradnorm_studies.engine.experiment import Job

BAR_WIDTH = 12
NARROW = 80
"""Terminals with fewer columns show no bars: names, percentages and times come first."""


class Board(ABC):
    """Counts runs, and shows them.

    Args:
        console: Where to show them.
        name: The study's name.
        steps: Steps per run.
        total: The number of all runs.
        done: The number of those that are finished.
    """

    def __init__(self, console: Console, name: str, steps: int, total: int, done: int) -> None:
        self._console, self._name, self._steps = console, name, steps
        self._total, self._done = total, done
        self._started: dict[Key, float] = {}
        self._reached: dict[Key, int] = {}
        self._finished: set[Key] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:  # noqa: B027 - plain lines have nothing to clean up
        pass

    def start(self, job: Job) -> None:
        """A run was submitted."""
        self._started[job.key] = time.monotonic()

    def show(self, job: Job, step: int) -> None:
        """A running run has reached `step`; ignored after its end."""
        if job.key in self._finished:
            return
        if job.key not in self._reached:  # a run that was queued starts now
            self._started[job.key] = time.monotonic()
        self._reached[job.key] = step
        self._moved(job)

    def finish(self, job: Job) -> None:
        """A run is finished."""
        self._reached.pop(job.key, None)
        self._finished.add(job.key)
        self._done += 1
        self._ended(job, time.monotonic() - self._started.get(job.key, time.monotonic()))

    @abstractmethod
    def _moved(self, job: Job) -> None:
        """Show a run's step."""

    @abstractmethod
    def _ended(self, job: Job, seconds: float) -> None:
        """Show a run's end."""


class Lines(Board):
    """A line per finished run: `3 of 12: T=2 gradnorm, seed 0, 61 s`."""

    def _moved(self, job: Job) -> None:
        pass

    def _ended(self, job: Job, seconds: float) -> None:
        taken = f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
        line = f"{self._done} of {self._total}: {_title(job)}, {taken}"
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


class Bars(Board):
    """A live bar for the whole study, and one per running run."""

    def __init__(self, console: Console, name: str, steps: int, total: int, done: int) -> None:
        super().__init__(console, name, steps, total, done)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            *([BarColumn(BAR_WIDTH)] if console.width >= NARROW else []),
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )
        self._bars: dict[Key, Any] = {}
        self._overall = self._progress.add_task("", total=total * steps)
        self._sum()

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    def _moved(self, job: Job) -> None:
        if job.key not in self._bars:
            self._bars[job.key] = self._progress.add_task(self._fitted(f"  {_title(job)}"), total=self._steps)
        self._progress.update(self._bars[job.key], completed=self._reached[job.key])
        self._sum()

    def _ended(self, job: Job, seconds: float) -> None:
        if job.key in self._bars:
            self._progress.remove_task(self._bars.pop(job.key))
        self._sum()

    def _sum(self) -> None:
        title = f"{self._name}: {self._done} of {self._total} runs"
        steps = self._done * self._steps + sum(self._reached.values())
        self._progress.update(self._overall, description=self._fitted(title), completed=steps)

    def _fitted(self, title: str) -> str:
        """The title, cut to one line beside percentage and time."""
        text = Text(title)
        text.truncate(self._console.width - 12, overflow="ellipsis")
        return text.plain


def board(console: Console, name: str, steps: int, total: int, done: int) -> Board:
    """The board for a console; see `Board`."""
    kind = Bars if console.is_terminal else Lines
    return kind(console, name, steps, total, done)


def _title(job: Job) -> str:
    problem, label, seed = job.key
    return f"{problem} {label}, seed {seed}"
