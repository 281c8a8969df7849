"""The replay buffer of DQN."""

from __future__ import annotations

from typing import Any

import torch

from gradnorm_studies.control.environments import GAMES, Transitions


class ReplayBuffer:
    """The last `size` transitions of each game.

    Args:
        size: Transitions per game.
    """

    def __init__(self, size: int) -> None:
        self._size, self._added = size, 0
        self._store = Transitions.zeros(len(GAMES), size)

    def add(self, transitions: Transitions) -> None:
        """Store [G, n] transitions in place of the oldest."""
        n = transitions.actions.shape[1]
        places = (self._added + torch.arange(n)) % self._size
        for store, new in zip(self._store, transitions, strict=True):
            store[:, places] = new
        self._added += n

    def sample(self, n: int, generator: torch.Generator) -> Transitions:
        """`n` transitions per game, drawn with replacement."""
        places = torch.randint(min(self._added, self._size), (len(GAMES), n), generator=generator)
        return Transitions(*(store[torch.arange(len(GAMES))[:, None], places] for store in self._store))

    def state_dict(self) -> dict[str, Any]:
        return {"store": list(self._store), "added": self._added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._store, self._added = Transitions(*state["store"]), state["added"]
