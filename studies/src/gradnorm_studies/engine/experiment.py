"""A run: its job, and the experiment that a study builds for it.

A run is a pure function of its job and the study's config: batches are drawn by step number, so a run that is resumed
from any checkpoint is bitwise equal to one that was never stopped.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradnorm_studies.analysis.metrics import Key
from gradnorm_studies.engine.settings import TrainingConfig
from gradnorm_studies.weightings import Weighting, WeightingConfig, weighting

Split = Literal["validation", "test"]
Stop = Callable[[int], bool]
"""Called with a run's step every few steps; true ends the run early, with a checkpoint."""


@dataclass(frozen=True)
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
    alpha: float | None = None
    """GradNorm's α. Default: the config's."""
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


def _constant(step: int) -> float:
    """Of the weighting's learning rate; no lambda, which could not be sent to the processes of DDP."""
    return 1.0


class Experiment(ABC):
    """A job in training: model, weighting and optimizer, its losses and its metrics."""

    tasks: tuple[str, ...]
    model: nn.Module
    weighting: Weighting
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR

    def equip(
        self, job: Job, config: TrainingConfig, shared: nn.Module, *, trained: nn.Module | None = None, epoch: int = 100
    ) -> None:
        """Set the weighting, and Adam and its schedule over the network and over the weighting's own parameters.

        Args:
            job: The run, with its weights filled in.
            config: The study's config.
            shared: The last shared layer, the paper's `W`.
            trained: The part of the model that is trained. Default: all.
            epoch: Steps over which DWA averages a loss.
        """
        alpha = config.alpha if job.alpha is None else job.alpha
        facts = WeightingConfig(self.tasks, shared, alpha, config.weight_lr, job.weights, max(1, epoch), job.seed)
        self.weighting = weighting(job.method, facts)
        own = {"params": self.weighting.parameters(), "lr": config.weight_lr}
        self.optimizer = torch.optim.Adam(
            [{"params": (trained or self.model).parameters()}, own], lr=job.lr, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, [self.decay, _constant])

    @abstractmethod
    def losses(self, step: int) -> Tensor:
        """[T], the losses on the batch of this step, which depends on seed, step and `stateful()` alone."""

    @abstractmethod
    def evaluate(self, split: Split) -> dict[str, float]:
        """Current metrics, by the names of the study's quantities; whatever is chosen is chosen on "validation"."""

    def decay(self, step: int) -> float:
        """Factor of the network's learning rate at this step; the weighting's own rate is constant."""
        return 1.0

    def stateful(self) -> dict[str, Any]:
        """What changes in training, by name: objects with `state_dict` and `load_state_dict`."""
        own = {"optimizer": self.optimizer, "schedule": self.schedule}
        return {"model": self.model, "weighting": self.weighting, **own}


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of a step: the same for every method, and after resuming."""
    return torch.Generator().manual_seed((seed + 1) * 1_000_003 + step)
