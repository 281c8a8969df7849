"""What a study is: which runs there are (`jobs`), how to build one (`experiment`), what all of them mean (`report`).

A run is a pure function of its job and the study's config: batches are drawn by step number, so a run that was stopped
at any step and goes on from its checkpoint gives the same bits as one that never stopped.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from gradnorm_studies.analysis.metrics import Key, Metrics
from gradnorm_studies.analysis.report import Report
from gradnorm_studies.weightings import Weighting


class UsageError(Exception):
    """What the user asked for cannot be done; the message says what to do instead."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it, and nothing is lost
    """The study was stopped; its finished runs and checkpoints are on disk."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run: which problem, by which method, from which seed."""

    problem: str
    method: str
    """A name of `weightings.METHODS`."""
    seed: int
    lr: float
    """The network's learning rate."""
    label: str = ""
    """What tables call it; the method, unless several jobs share one."""
    weights: tuple[float, ...] | None = None
    """Fixed weights, one a task."""
    weights_from: Job | None = None
    """The run whose time-averaged weights this one takes as its fixed ones."""

    @property
    def key(self) -> Key:
        """Problem, label and seed: what tells this run from every other."""
        return self.problem, self.label or self.method, self.seed

    @property
    def file_name(self) -> str:
        """The key, safe as a file's name everywhere."""
        return re.sub(r"[^\w.+-]+", "-", "_".join(map(str, self.key)))


class Experiment(Protocol):
    """One job, built: everything that changes while it trains, and how to measure it.

    Where the data depend on what the network did before, as an agent's do, their state is one more attribute, `world`,
    with `state_dict()` and `load_state_dict()` over tensors and plain values.
    """

    tasks: tuple[str, ...]
    model: nn.Module
    weighting: Weighting
    optimizer: torch.optim.Optimizer

    def losses(self, step: int) -> Tensor:
        """The tasks' losses on the batch of this step, [T]; the batch depends on seed, step and `world` alone."""
        ...

    def evaluate(self) -> dict[str, float]:
        """The test metrics now."""
        ...


class Config(Protocol):
    """What every study's config has; the rest is its own."""

    @property
    def seeds(self) -> int:
        """How many seeds are reported."""
        ...

    @property
    def steps(self) -> int:
        """Training steps of a run."""
        ...

    @property
    def record_every(self) -> int:
        """Steps between two records."""
        ...


class Study(Protocol):
    """A study; a new one is one file. It must survive pickling: it is sent to worker processes.

    One that trains in another way than `train`'s loop has a method `train(job, folder, stop)` of its own.
    """

    @property
    def name(self) -> str:
        """What `gradnorm reproduce` calls it."""
        ...

    @property
    def config(self) -> Config:
        """A frozen dataclass of plain values."""
        ...

    def jobs(self) -> list[Job]:
        """All runs; those that others wait for, and the longest, first."""
        ...

    def experiment(self, job: Job) -> Experiment:
        """Builds a job, its weights filled in; called with the job's seed set."""
        ...

    def report(self, metrics: Metrics, figures: Path) -> Report:
        """Tables, verdicts and figures, drawn into the folder `figures`."""
        ...
