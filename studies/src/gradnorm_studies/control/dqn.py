"""A deep Q-network (DQN) with one trunk for all games, and a Q-head and a replay buffer per game.

The losses are mean squared temporal-difference (TD) errors (double Q-learning), so they grow with the square of the
rewards, and the largest rewards dominate the trunk. TD errors do not measure progress: they rise as the agent finds
larger returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradnorm_studies.control.agent import WIDTH, Agent, Trunks, trunks_of
from gradnorm_studies.control.environments import ENVIRONMENTS, GAMES, Transitions, random_actions
from gradnorm_studies.control.replay import ReplayBuffer
from gradnorm_studies.control.settings import RlConfig
from gradnorm_studies.engine.experiment import Job, step_generator


class QNetwork(nn.Module):
    """One trunk for all games, or one per game, and an affine Q-head per game."""

    def __init__(self, trunks: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(spec.actions)) for spec in ENVIRONMENTS)
        self.trunks = Trunks(trunks)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """[G, n, INPUTS] → Q-values per game, G times [n, A]."""
        return [head(x) for head, x in zip(self.heads, self.trunks(inputs), strict=True)]


class QNetworks(nn.Module):
    """The online network, and the target network: bootstrap targets, and the policy in evaluation."""

    def __init__(self, trunks: int, tau: float) -> None:
        super().__init__()
        self.online = QNetwork(trunks)
        self.target = deepcopy(self.online).requires_grad_(False)
        self._tau = tau

    def update_target(self) -> None:
        """Soft update: `target ← target + tau (online − target)`."""
        for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
            target.lerp_(online.detach(), self._tau)


class Dqn(Agent):
    """Balances the TD errors of the games."""

    tasks = GAMES

    def __init__(self, config: RlConfig, job: Job) -> None:
        super().__init__(config, job, config.num_envs)
        self.model = networks = QNetworks(trunks_of(job), config.tau)
        self.equip(job, config, networks.online.trunks.last_shared, trained=networks.online)
        self.networks, self.replay_buffer = networks, ReplayBuffer(config.buffer_size)
        generator = torch.Generator().manual_seed(job.seed)
        for _ in range(config.learning_starts):
            self.replay_buffer.add(self.environments.step(random_actions(config.num_envs, generator)))

    def losses(self, step: int) -> Tensor:
        """One step in every environment, then the mean squared TD errors of a batch from the replay buffer, [G]."""
        generator = step_generator(self.seed, step)
        self.networks.update_target()
        self.replay_buffer.add(self.environments.step(self._explore(step, generator)))
        batch = self.replay_buffer.sample(self.config.batch, generator)
        rows = zip(self.networks.online(batch.inputs), batch.actions, self._targets(batch), strict=True)
        return torch.stack([F.mse_loss(_of(q, actions), target) for q, actions, target in rows])

    def best_actions(self, inputs: Tensor) -> Tensor:
        """Those of the target network, [G, n]."""
        return greedy(self.networks.target(inputs))

    def stateful(self) -> dict[str, Any]:
        """The replay buffer, too."""
        return {**super().stateful(), "replay_buffer": self.replay_buffer}

    @torch.no_grad()
    def _explore(self, step: int, generator: torch.Generator) -> Tensor:
        """ε-greedy actions, [G, num_envs]."""
        epsilon = max(0.05, 1 - 0.95 * step / (self.config.exploration_fraction * self.config.steps))
        best = greedy(self.networks.online(self.environments.inputs))
        tried = random_actions(self.config.num_envs, generator)
        return torch.where(torch.rand(best.shape, generator=generator) < epsilon, tried, best)

    @torch.no_grad()
    def _targets(self, batch: Transitions) -> Tensor:
        """Double-Q targets, [G, n]: the online network selects the next action, the target network evaluates it."""
        best = greedy(self.networks.online(batch.next_inputs))
        evaluated = self.networks.target(batch.next_inputs)
        future = torch.stack([_of(q, actions) for q, actions in zip(evaluated, best, strict=True)])
        return batch.rewards + self.config.discount * future.masked_fill(batch.terminated, 0)


def _of(values: Tensor, actions: Tensor) -> Tensor:
    """The Q-values [n] of the actions [n]; `values` is [n, A]."""
    return values.gather(1, actions.unsqueeze(1)).squeeze(1)


def greedy(values: Sequence[Tensor]) -> Tensor:
    """G times [n, A] → the best actions, [G, n]."""
    return torch.stack([q.argmax(1) for q in values])
