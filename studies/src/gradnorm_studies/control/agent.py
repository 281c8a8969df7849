"""What both agents have in common: their trunk, the episodes that they learn from, and how they are evaluated.

Unlike a data set, the environments depend on the agent, so their state is a part of the run's. Random numbers are drawn
from the seed and the step.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from gradnorm_studies.control.environments import (
    ENVIRONMENTS,
    GAMES,
    INPUTS,
    TrainingEnvironments,
    mean_returns,
    random_actions,
)
from gradnorm_studies.control.settings import RlConfig
from gradnorm_studies.engine.experiment import Experiment, Job, Split

WIDTH = 128
SOLVED = "share of solved %"
"""The quantity by which learning rates are chosen: random play is 0, solving all games is 100."""
TRAINING_SEED = 1_000_003
"""First seed of a run's episodes, times the run's seed + 1: far below those of evaluation."""
EVALUATION_SEEDS: dict[Split, int] = {"validation": 2_000_000_003, "test": 3_000_000_019}
"""First seeds of the episodes of evaluation; 1000 per run's seed."""


class Trunks(nn.Module):
    """Two ReLU layers, shared by all games, or as many times as there are games."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(count)
        )

    @property
    def last_shared(self) -> nn.Module:
        """The last layer of the trunk, the paper's `W` where it is shared."""
        return self.layers[0].get_submodule("2")

    def forward(self, inputs: Tensor) -> Tensor:
        """[G, n, INPUTS] → [G, n, WIDTH]."""
        if len(self.layers) == 1:
            return self.layers[0](inputs)
        return torch.stack([trunk(x) for trunk, x in zip(self.layers, inputs, strict=True)])


def trunks_of(job: Job) -> int:
    """One trunk for all games; one per game for `single`."""
    return len(GAMES) if job.method == "single" else 1


class Agent(Experiment):
    """An agent in training; subclasses set `tasks`, `model` and the rest by `equip`.

    Args:
        config: The study's config.
        job: The run.
        num_envs: Copies of each environment that it learns in.
    """

    def __init__(self, config: RlConfig, job: Job, num_envs: int) -> None:
        self.config, self.seed = config, job.seed
        self.environments = TrainingEnvironments(num_envs, (job.seed + 1) * TRAINING_SEED)
        generator = torch.Generator().manual_seed(job.seed)
        self._random = {split: self._returns(split, generator) for split in EVALUATION_SEEDS}

    @abstractmethod
    def best_actions(self, inputs: Tensor) -> Tensor:
        """The actions that the agent holds for the best, [G, n]; it is evaluated by these."""

    def evaluate(self, split: Split) -> dict[str, float]:
        """Mean returns of this agent and of random play, and the share of solved."""
        returns, random = self._returns(split), self._random[split]
        results = zip(returns, random, ENVIRONMENTS, strict=True)
        shares = [(value - low) / (spec.solved - low) for value, low, spec in results]
        return {
            SOLVED: 100 * sum(shares) / len(shares),
            **{f"return/{game}": value for game, value in zip(GAMES, returns, strict=True)},
            **{f"random/{game}": value for game, value in zip(GAMES, random, strict=True)},
        }

    def _returns(self, split: Split, generator: torch.Generator | None = None) -> list[float]:
        """Mean returns of the agent, or of random play by the generator."""
        n = self.config.eval_episodes
        policy = self.best_actions if generator is None else lambda inputs: random_actions(n, generator)
        return mean_returns(policy, n, EVALUATION_SEEDS[split] + 1000 * self.seed)

    def stateful(self) -> dict[str, Any]:
        """The environments, too."""
        return {**super().stateful(), "environments": self.environments}
