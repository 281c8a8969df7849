"""Gymnasium's tasks, several games of each side by side.

Observations of all tasks are padded to one width and marked with the task's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Task(NamedTuple):
    """A task of gymnasium, and the scale its rewards are given."""

    name: str
    id: str
    actions: tuple[Any, ...]
    """What each output of the head stands for: gymnasium's own actions, or torques chosen from a continuous range."""
    limits: tuple[float, ...]
    """What observations are divided by, about their range."""
    scale: float
    """What rewards are multiplied by, for learning only: returns are reported in gymnasium's units."""
    solved: float
    """A return that counts as solved: gymnasium's threshold, where it has one."""


GAMES = (
    Task("CartPole", "CartPole-v1", (0, 1), (2.4, 2.0, 0.2, 2.0), 0.05, 475),
    Task("Acrobot", "Acrobot-v1", (0, 1, 2), (1.0, 1.0, 1.0, 1.0, 6.0, 12.0), 0.5, -100),
    Task(
        "Pendulum", "Pendulum-v1", tuple(np.array([u]) for u in (-2.0, -1.0, 0.0, 1.0, 2.0)), (1.0, 1.0, 8.0), 1.0, -200
    ),
)
"""Under random actions a step's reward is 0.05, about −0.5 and about −6: from first to last a factor of over 100."""

TASKS = tuple(task.name for task in GAMES)
OBSERVED = max(len(task.limits) for task in GAMES)
INPUTS = OBSERVED + len(TASKS)


class Game:
    """One copy of a task's environment, with a clock of its own."""

    def __init__(self, task: Task) -> None:
        import gymnasium

        env = gymnasium.make(task.id)
        assert env.spec is not None
        assert env.spec.max_episode_steps is not None
        self._actions, self._limit = task.actions, env.spec.max_episode_steps
        self._env: Any = env.unwrapped
        self._moves = 0

    def start(self, seed: int) -> NDArray[np.float32]:
        """A new game's first observation."""
        self._moves = 0
        return self._env.reset(seed=seed)[0]

    def move(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool]:
        """Observation, reward, whether it ended of itself (nothing is left to win), whether it is over."""
        observation, reward, ended, _, _ = self._env.step(self._actions[action])
        self._moves += 1
        return observation, float(reward), ended, ended or self._moves == self._limit

    def state_dict(self) -> dict[str, Any]:
        """Between two starts gymnasium's classic control knows its `state` and nothing else."""
        return {"state": torch.tensor(np.asarray(self._env.state)), "moves": self._moves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._env.state = state["state"].numpy()
        self._moves = state["moves"]


class Moves(NamedTuple):
    """Moves in the games of all tasks, each [T, n] or [T, n, …]."""

    before: Tensor
    """The network's inputs, [T, n, INPUTS]."""
    actions: Tensor
    rewards: Tensor
    """In gymnasium's units."""
    after: Tensor
    """The inputs that followed."""
    ended: Tensor
    over: Tensor


class Games:
    """`copies` games of every task, side by side."""

    def __init__(self, copies: int) -> None:
        self.copies = copies
        self._games = [[Game(task) for _ in range(copies)] for task in GAMES]
        self._inputs = np.zeros((len(TASKS), copies, INPUTS), dtype=np.float32)
        for place in range(len(TASKS)):
            self._inputs[place, :, OBSERVED + place] = 1
        self._limits = [np.array(task.limits, dtype=np.float32) for task in GAMES]

    @property
    def inputs(self) -> Tensor:
        """What the network sees now: observations over their limits, padded, and a 1 at the task's place."""
        return torch.tensor(self._inputs)

    def start(self, task: int, copy: int, seed: int) -> None:
        """Begins one game anew."""
        self._see(task, copy, self._games[task][copy].start(seed))

    def move(self, actions: Tensor, playing: Sequence[tuple[int, int]]) -> Moves:
        """One move in each game of `playing`, (task, copy); `actions` is [T, copies]."""
        before = self.inputs
        rewards = np.zeros(actions.shape, dtype=np.float32)
        ended, over = np.zeros(actions.shape, dtype=bool), np.zeros(actions.shape, dtype=bool)
        chosen = actions.tolist()
        for at in playing:
            task, copy = at
            seen, rewards[at], ended[at], over[at] = self._games[task][copy].move(chosen[task][copy])
            self._see(task, copy, seen)
        outcome = [torch.from_numpy(array) for array in (rewards, ended, over)]
        return Moves(before, actions, outcome[0], self.inputs, *outcome[1:])

    def _see(self, task: int, copy: int, observation: NDArray[np.float32]) -> None:
        self._inputs[task, copy, : len(observation)] = observation / self._limits[task]

    def state_dict(self) -> dict[str, Any]:
        """What the network sees, and each game's state."""
        return {"inputs": self.inputs, "games": [[game.state_dict() for game in row] for row in self._games]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._inputs[:] = state["inputs"].numpy()
        for row, saved in zip(self._games, state["games"], strict=True):
            for game, one in zip(row, saved, strict=True):
                game.load_state_dict(one)
