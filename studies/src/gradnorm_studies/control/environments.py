"""Gymnasium's environments, several copies of each side by side.

Observations of all games are padded to one width, followed by a one-hot encoding of the game.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class EnvSpec(NamedTuple):
    """An environment of gymnasium and its discrete actions."""

    name: str
    id: str
    actions: tuple[Any, ...]
    """What each output of a policy or Q-head stands for: gymnasium's actions, or torques from a continuous range."""
    limits: tuple[float, ...]
    """Divisors of the observations, about their range."""
    reward: float
    """What random play earns per step, in gymnasium's units."""
    solved: float
    """A return that counts as solved: gymnasium's threshold, where it has one."""


TORQUES = tuple(np.array([u]) for u in (-2.0, -1.0, 0.0, 1.0, 2.0))
ENVIRONMENTS = (
    EnvSpec("CartPole", "CartPole-v1", (0, 1), (2.4, 2.0, 0.2, 2.0), 1, 475),
    EnvSpec("Acrobot", "Acrobot-v1", (0, 1, 2), (1.0, 1.0, 1.0, 1.0, 6.0, 12.0), -1, -100),
    EnvSpec("Pendulum", "Pendulum-v1", TORQUES, (1.0, 1.0, 8.0), -6, -200),
)

GAMES = tuple(spec.name for spec in ENVIRONMENTS)
OBSERVED = max(len(spec.limits) for spec in ENVIRONMENTS)
INPUTS = OBSERVED + len(GAMES)

Policy = Callable[[Tensor], Tensor]
"""Maps inputs [G, n, INPUTS] to actions [G, n]."""


class Environment:
    """One copy of an environment, with its own time limit."""

    def __init__(self, spec: EnvSpec) -> None:
        import gymnasium

        env = gymnasium.make(spec.id)
        assert env.spec is not None
        assert env.spec.max_episode_steps is not None
        self._actions, self._limit = spec.actions, env.spec.max_episode_steps
        self._env: Any = env.unwrapped
        self._steps = 0

    def reset(self, seed: int) -> NDArray[np.float32]:
        """Start an episode; returns its first observation."""
        self._steps = 0
        return self._env.reset(seed=seed)[0]

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool]:
        """Observation, reward, whether the episode terminated, whether it is done (terminated or truncated)."""
        observation, reward, terminated, _, _ = self._env.step(self._actions[action])
        self._steps += 1
        return observation, float(reward), terminated, terminated or self._steps == self._limit

    def state_dict(self) -> dict[str, Any]:
        """The whole state: between two resets gymnasium's classic control has its `state` and nothing else."""
        return {"state": torch.tensor(np.asarray(self._env.state)), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._env.state = state["state"].numpy()
        self._steps = state["steps"]


class Transitions(NamedTuple):
    """Transitions of all games, each field [G, n] or [G, n, …]."""

    inputs: Tensor
    """The network's inputs, [G, n, INPUTS]."""
    actions: Tensor
    rewards: Tensor
    next_inputs: Tensor
    terminated: Tensor
    done: Tensor
    """Terminated or truncated."""

    @classmethod
    def zeros(cls, *shape: int) -> Transitions:
        """Room for transitions of this shape, [G, n] for example."""
        inputs = [torch.zeros(*shape, INPUTS) for _ in range(2)]
        flags = [torch.zeros(shape, dtype=torch.bool) for _ in range(2)]
        return cls(inputs[0], torch.zeros(shape, dtype=torch.long), torch.zeros(shape), inputs[1], *flags)


class VectorEnvironments:
    """`num_envs` copies of every environment, side by side."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self._envs = [[Environment(spec) for _ in range(num_envs)] for spec in ENVIRONMENTS]
        self._inputs = np.zeros((len(GAMES), num_envs, INPUTS), dtype=np.float32)
        for game in range(len(GAMES)):
            self._inputs[game, :, OBSERVED + game] = 1
        self._limits = [np.array(spec.limits, dtype=np.float32) for spec in ENVIRONMENTS]

    @property
    def inputs(self) -> Tensor:
        """The network's inputs, [G, num_envs, INPUTS]: observations over their limits, padded, and the one-hot game."""
        return torch.tensor(self._inputs)

    @property
    def copies(self) -> list[tuple[int, int]]:
        """All (game, copy)."""
        return [(game, copy) for game in range(len(GAMES)) for copy in range(self.num_envs)]

    def reset(self, game: int, copy: int, seed: int) -> None:
        """Start an episode in one copy."""
        self._observe(game, copy, self._envs[game][copy].reset(seed))

    def step(self, actions: Tensor, active: Sequence[tuple[int, int]]) -> Transitions:
        """One step in each (game, copy) of `active`; `actions` is [G, num_envs]."""
        inputs = self.inputs
        rewards = np.zeros(actions.shape, dtype=np.float32)
        terminated, done = np.zeros(actions.shape, dtype=bool), np.zeros(actions.shape, dtype=bool)
        chosen = actions.tolist()
        for at in active:
            game, copy = at
            observation, rewards[at], terminated[at], done[at] = self._envs[game][copy].step(chosen[game][copy])
            self._observe(game, copy, observation)
        outcome = [torch.from_numpy(array) for array in (rewards, terminated, done)]
        return Transitions(inputs, actions, outcome[0], self.inputs, *outcome[1:])

    def _observe(self, game: int, copy: int, observation: NDArray[np.float32]) -> None:
        self._inputs[game, copy, : len(observation)] = observation / self._limits[game]

    def state_dict(self) -> dict[str, Any]:
        """The network's inputs, and the state of each copy."""
        return {"inputs": self.inputs, "envs": [[env.state_dict() for env in row] for row in self._envs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inputs[:] = state["inputs"].numpy()
        for row, saved in zip(self._envs, state["envs"], strict=True):
            for env, one in zip(row, saved, strict=True):
                env.load_state_dict(one)


class TrainingEnvironments:
    """Environments that an agent learns in: an episode that is done is followed by the next, with a seed of its own.

    Args:
        num_envs: Copies of each environment.
        first_seed: The seed of the first episode; the following ones count up.
    """

    def __init__(self, num_envs: int, first_seed: int) -> None:
        self._envs, self._next_seed = VectorEnvironments(num_envs), first_seed
        for at in self._envs.copies:
            self._reset(*at)

    @property
    def inputs(self) -> Tensor:
        """The network's inputs, [G, num_envs, INPUTS]."""
        return self._envs.inputs

    def step(self, actions: Tensor) -> Transitions:
        """One step in every copy, [G, num_envs]; `next_inputs` are those before a restart."""
        transitions = self._envs.step(actions, self._envs.copies)
        for game, copy in transitions.done.nonzero().tolist():
            self._reset(game, copy)
        return transitions

    def _reset(self, game: int, copy: int) -> None:
        self._envs.reset(game, copy, self._next_seed)
        self._next_seed += 1

    def state_dict(self) -> dict[str, Any]:
        return {"envs": self._envs.state_dict(), "next_seed": self._next_seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._envs.load_state_dict(state["envs"])
        self._next_seed = state["next_seed"]


def random_actions(n: int, generator: torch.Generator) -> Tensor:
    """Uniform over each game's own actions, [G, n]."""
    counts = torch.tensor([len(spec.actions) for spec in ENVIRONMENTS]).unsqueeze(1)
    return (torch.rand(len(GAMES), n, generator=generator) * counts).long()


def mean_returns(policy: Policy, n: int, first_seed: int) -> list[float]:
    """Mean return per game over `n` episodes; initial states are always those of the seeds from `first_seed` on."""
    envs = VectorEnvironments(n)
    active = envs.copies
    for game, copy in active:
        envs.reset(game, copy, first_seed + copy)
    returns = torch.zeros(len(GAMES), n)
    done = torch.zeros(len(GAMES), n, dtype=torch.bool)
    while active:
        transitions = envs.step(policy(envs.inputs), active)
        returns += transitions.rewards
        done |= transitions.done
        active = [(game, copy) for game, copy in (~done).nonzero().tolist()]
    return returns.mean(1).tolist()
