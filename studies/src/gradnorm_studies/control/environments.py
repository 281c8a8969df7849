"""Gymnasium's environments, several copies of each side by side.

Observations of all tasks are padded to one width, followed by a one-hot encoding of the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class EnvSpec(NamedTuple):
    """An environment of gymnasium, its discrete actions, and the scale of its rewards."""

    name: str
    id: str
    actions: tuple[Any, ...]
    """What each output of the Q-head stands for: gymnasium's own actions, or torques from a continuous range."""
    limits: tuple[float, ...]
    """Divisors of the observations, about their range."""
    scale: float
    """Factor on the rewards in training only: returns are reported in gymnasium's units."""
    solved: float
    """A return that counts as solved: gymnasium's threshold, where it has one."""


ENVIRONMENTS = (
    EnvSpec("CartPole", "CartPole-v1", (0, 1), (2.4, 2.0, 0.2, 2.0), 0.05, 475),
    EnvSpec("Acrobot", "Acrobot-v1", (0, 1, 2), (1.0, 1.0, 1.0, 1.0, 6.0, 12.0), 0.5, -100),
    EnvSpec(
        "Pendulum", "Pendulum-v1", tuple(np.array([u]) for u in (-2.0, -1.0, 0.0, 1.0, 2.0)), (1.0, 1.0, 8.0), 1.0, -200
    ),
)
"""Under random actions the reward per step is 0.05, about −0.5 and about −6: a factor of over 100."""

TASKS = tuple(spec.name for spec in ENVIRONMENTS)
OBSERVED = max(len(spec.limits) for spec in ENVIRONMENTS)
INPUTS = OBSERVED + len(TASKS)


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
    """Transitions of all tasks, each field [T, n] or [T, n, …]."""

    inputs: Tensor
    """The network's inputs, [T, n, INPUTS]."""
    actions: Tensor
    rewards: Tensor
    """In gymnasium's units."""
    next_inputs: Tensor
    terminated: Tensor
    done: Tensor
    """Terminated or truncated."""


class VectorEnvironments:
    """`num_envs` copies of every environment, side by side."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self._envs = [[Environment(spec) for _ in range(num_envs)] for spec in ENVIRONMENTS]
        self._inputs = np.zeros((len(TASKS), num_envs, INPUTS), dtype=np.float32)
        for task in range(len(TASKS)):
            self._inputs[task, :, OBSERVED + task] = 1
        self._limits = [np.array(spec.limits, dtype=np.float32) for spec in ENVIRONMENTS]

    @property
    def inputs(self) -> Tensor:
        """The network's inputs: observations over their limits, padded, and the one-hot task."""
        return torch.tensor(self._inputs)

    def reset(self, task: int, copy: int, seed: int) -> None:
        """Start an episode in one copy."""
        self._observe(task, copy, self._envs[task][copy].reset(seed))

    def step(self, actions: Tensor, active: Sequence[tuple[int, int]]) -> Transitions:
        """One step in each (task, copy) of `active`; `actions` is [T, num_envs]."""
        inputs = self.inputs
        rewards = np.zeros(actions.shape, dtype=np.float32)
        terminated, done = np.zeros(actions.shape, dtype=bool), np.zeros(actions.shape, dtype=bool)
        chosen = actions.tolist()
        for at in active:
            task, copy = at
            observation, rewards[at], terminated[at], done[at] = self._envs[task][copy].step(chosen[task][copy])
            self._observe(task, copy, observation)
        outcome = [torch.from_numpy(array) for array in (rewards, terminated, done)]
        return Transitions(inputs, actions, outcome[0], self.inputs, *outcome[1:])

    def _observe(self, task: int, copy: int, observation: NDArray[np.float32]) -> None:
        self._inputs[task, copy, : len(observation)] = observation / self._limits[task]

    def state_dict(self) -> dict[str, Any]:
        """The network's inputs, and the state of each copy."""
        return {"inputs": self.inputs, "envs": [[env.state_dict() for env in row] for row in self._envs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inputs[:] = state["inputs"].numpy()
        for row, saved in zip(self._envs, state["envs"], strict=True):
            for env, one in zip(row, saved, strict=True):
                env.load_state_dict(one)
