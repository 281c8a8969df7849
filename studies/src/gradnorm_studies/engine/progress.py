"""Live progress in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gradnorm_studies.analysis.metrics import Key
from gradnorm_studies.engine.experiment import Job


class Board:
    """Live progress: one bar for the whole study, and one per running run."""

    def __init__(self, console: Console, name: str, steps: int, total: int, done: int) -> None:
        self._steps = steps
        self._bars: dict[Key, Any] = {}
        self._finished: set[Key] = set()
        self._progress = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._total, self._done = total, done
        self._overall = self._progress.add_task(
            f"[bold]{name}", total=total * self._steps, completed=done * self._steps, note=""
        )
        self._note()

    def __enter__(self) -> Board:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    @property
    def running(self) -> list[Key]:
        """The runs that have a bar."""
        return list(self._bars)

    def show(self, job: Job, step: int) -> None:
        """A run has reached `step`; said too late, after its end, it is not shown."""
        if job.key in self._finished:
            return
        if job.key not in self._bars:
            problem, label, seed = job.key
            self._bars[job.key] = self._progress.add_task(
                f"  {problem} {label}, seed {seed}", total=self._steps, note=""
            )
        self._progress.update(self._bars[job.key], completed=step)
        self._sum()

    def finish(self, job: Job) -> None:
        if job.key in self._bars:
            self._progress.remove_task(self._bars.pop(job.key))
        self._finished.add(job.key)
        self._done += 1
        self._sum()
        self._note()

    def _sum(self) -> None:
        running = sum(self._progress.tasks[i].completed for i in range(1, len(self._progress.tasks)))
        self._progress.update(self._overall, completed=self._done * self._steps + running)

    def _note(self) -> None:
        self._progress.update(self._overall, note=f"{self._done} of {self._total} runs")
