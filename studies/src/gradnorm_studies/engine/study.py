"""The contract of a study: its runs (`jobs`), how to build one (`experiment`), and the report on all (`report`).

A run is a pure function of its job and the study's config: batches are drawn by step number, so a run that is resumed
from any checkpoint is bitwise equal to one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from gradnorm_studies.analysis.metrics import Key, Metrics
from gradnorm_studies.analysis.report import StudyReport
from gradnorm_studies.weightings import Weighting


class UsageError(Exception):
    """A request that cannot be carried out; the message says what to do instead."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it, and nothing is lost
    """The user stopped the study; its finished runs and checkpoints are on disk."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run: its problem, method and seed."""

    problem: str
    method: str
    """A name of `weightings.METHODS`."""
    seed: int
    lr: float
    """The network's learning rate."""
    label: str = ""
    """The run's name in tables; the method, unless several jobs share one."""
    weights: tuple[float, ...] | None = None
    """Fixed weights, one per task."""
    weights_from: Job | None = None
    """The run whose time-averaged weights become the fixed weights of this one."""

    @property
    def key(self) -> Key:
        """Problem, label and seed, which identify the run."""
        return self.problem, self.label or self.method, self.seed

    @property
    def file_name(self) -> str:
        """The key as a portable file name."""
        return re.sub(r"[^\w.+-]+", "-", "_".join(map(str, self.key)))


class Experiment(Protocol):
    """A job in training: model, weighting and optimizer, its losses and its test metrics.

    Where the data depend on what the network did before, as an agent's do, their state is one more attribute, `world`,
    with `state_dict()` and `load_state_dict()` over tensors and plain values.
    """

    tasks: tuple[str, ...]
    model: nn.Module
    weighting: Weighting
    optimizer: torch.optim.Optimizer

    def losses(self, step: int) -> Tensor:
        """[T], the losses on the batch of this step, which depends on seed, step and `world` alone."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Current test metrics."""
        ...


class Config(Protocol):
    """The fields that every study's config has."""

    @property
    def seeds(self) -> int:
        """Number of reported seeds."""
        ...

    @property
    def steps(self) -> int:
        """Training steps per run."""
        ...

    @property
    def record_every(self) -> int:
        """Steps between two records."""
        ...


class Study(Protocol):
    """A study. It must be picklable: it is sent to worker processes.

    One that trains in another way than `train`'s loop has a method `train(job, folder, stop)` of its own.
    """

    @property
    def name(self) -> str:
        """The name that `gradnorm reproduce` takes."""
        ...

    @property
    def config(self) -> Config:
        """A frozen dataclass of plain values."""
        ...

    def jobs(self) -> list[Job]:
        """All runs; those that others depend on, and the longest, first."""
        ...

    def experiment(self, job: Job) -> Experiment:
        """Build a job, its weights filled in; called after seeding with the job's seed."""
        ...

    def report(self, metrics: Metrics, figures: Path) -> StudyReport:
        """The report; figures are drawn into the folder `figures`."""
        ...
