"""Where runs are trained: the contract of a pool, and the pool that is this very process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.engine.study import Study

Show = Callable[[Job, int], None]
"""Called as `(job, step)` with the steps that runs have reached."""


class Pool(ABC):
    """Trains runs; leaving the context stops those that are running."""

    slots: float
    """How many runs to submit at once."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *exception: Any) -> None: ...

    @abstractmethod
    def submit(self, job: Job) -> Future[Any]:
        """Start a run."""

    def collect(self, job: Job, future: Future[Any]) -> None:
        """Make sure that a finished run's file is in the study's folder; re-raises the run's exception."""
        future.result()

    def poll(self) -> None:  # noqa: B027 - a pool that shows steps as they come has nothing to do
        """Show the steps that runs have reached since the last call."""


OpenPool = Callable[[Study, Path, Show], Pool]
"""Opens a pool for the runs of a study in its folder."""


class InProcess(Pool):
    """Trains in this process, one run after the other."""

    slots = 1

    def __init__(self, study: Study, out: Path, show: Show) -> None:
        self._study, self._folder, self._show = study, out / "runs", show
        self._threads = torch.get_num_threads()
        # These networks gain nothing from more threads, and with one, sums are the same everywhere.
        torch.set_num_threads(1)

    def __exit__(self, *exception: Any) -> None:
        torch.set_num_threads(self._threads)

    def submit(self, job: Job) -> Future[bool]:
        """Train a run."""
        done: Future[bool] = Future()
        done.set_result(self._study.train(job, self._folder, partial(self._watch, job)))
        return done

    def _watch(self, job: Job, step: int) -> bool:
        self._show(job, step)
        return False
