"""The agent: a deep Q-network with one trunk for all tasks, and for each a Q-head, its own games and its own memory.

The losses are mean squared temporal differences (double Q-learning), so they grow with the square of the rewards, and
the largest rewards rule the trunk. Temporal differences are no measure of progress: they rise as the agent learns what
there is to win.

Unlike a data set, the games depend on the agent. All that changes with them is the experiment's `world`; chance is
drawn by seed and step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradnorm_studies.control.environments import GAMES, INPUTS, TASKS, Games, Moves
from gradnorm_studies.engine.settings import setting
from gradnorm_studies.engine.study import Job
from gradnorm_studies.weightings import Setting, weighting

WIDTH = 128
SCORE = "share of solved %"
"""One figure for a run by itself, by which learning rates are chosen: random play is 0, solving all tasks is 100."""
TRAINING_GAMES, TEST_GAMES = 1_000_003, 2_000_000_003
"""Seeds of games: those of training count up from the first, far below those of tests."""


@dataclass(frozen=True)
class RlConfig:
    """Chosen before any result of a method that shares a network was seen."""

    seeds: int = setting(
        3, "The fewest that show a spread; a seed sets the network, the games and all chance.", least=1
    )
    steps: int = setting(
        15_000, "An agent for each task learns all three; all runs take about seven minutes on two cores.", least=1
    )
    copies: int = setting(4, "Games of a task side by side: 60,000 moves a task over a run.", least=1)
    batch: int = setting(64, "A common size; drawn from each task's own memory.", least=1)
    memory: int = setting(50_000, "Moves a task remembers: the last 12,500 steps.", least=1)
    warm_up: int = setting(250, "Random moves of every copy first, so that no batch is of one game.", least=1)
    discount: float = setting(0.98, "Sees 50 moves ahead: Acrobot needs about 80, CartPole falls within 10.", above=0)
    exploring: float = setting(0.3, "Share of the run over which random moves fall from all to 5 in 100.", above=0)
    slow_rate: float = setting(0.005, "A common rate at which the copy that rates the future follows.", above=0)
    test_games: int = setting(20, "From the same starts for all methods of a seed; the slow copy plays.", least=1)
    alpha: float = setting(
        0.12,
        "The paper's for tasks that differ in scale alone, §4. Small, since temporal differences do not fall as the "
        "agent learns: their ratios say little of progress.",
        least=0,
    )
    weight_lr: float = setting(0.025, "The paper's, §5, with Adam.", above=0)
    record_every: int = setting(500, "30 points on a curve.", least=1)


class World:
    """The games in play and the memory of them: all that changes with the agent."""

    def __init__(self, config: RlConfig, seed: int) -> None:
        self._games = Games(config.copies)
        self._everyone = [(task, copy) for task in range(len(TASKS)) for copy in range(config.copies)]
        self._first_seed, self._started, self._remembered = (seed + 1) * TRAINING_GAMES, 0, 0
        for at in self._everyone:
            self._start(*at)
        sizes = len(TASKS), config.memory
        flags = [torch.zeros(sizes, dtype=torch.bool) for _ in range(2)]
        seen = [torch.zeros(*sizes, INPUTS) for _ in range(2)]
        self._memory = Moves(seen[0], torch.zeros(sizes, dtype=torch.long), torch.zeros(sizes), seen[1], *flags)

    @property
    def inputs(self) -> Tensor:
        """What the network sees in each game, [T, copies, INPUTS]."""
        return self._games.inputs

    def move(self, actions: Tensor) -> None:
        """One move in every game, remembered; those that are over begin anew."""
        moves = self._games.move(actions, self._everyone)
        places = (self._remembered + torch.arange(self._games.copies)) % self._memory.actions.shape[1]
        for store, new in zip(self._memory, moves, strict=True):
            store[:, places] = new
        self._remembered += self._games.copies
        for task, copy in moves.over.nonzero().tolist():
            self._start(task, copy)

    def sample(self, n: int, generator: torch.Generator) -> Moves:
        """`n` remembered moves a task."""
        known = min(self._remembered, self._memory.actions.shape[1])
        places = torch.randint(known, (len(TASKS), n), generator=generator)
        return Moves(*(store[torch.arange(len(TASKS))[:, None], places] for store in self._memory))

    def _start(self, task: int, copy: int) -> None:
        self._games.start(task, copy, self._first_seed + self._started)
        self._started += 1

    def state_dict(self) -> dict[str, Any]:
        """Games, memory, counters."""
        return {
            "games": self._games.state_dict(),
            "memory": list(self._memory),
            "started": self._started,
            "remembered": self._remembered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._games.load_state_dict(state["games"])
        self._memory = Moves(*state["memory"])
        self._started, self._remembered = state["started"], state["remembered"]


class Network(nn.Module):
    """One trunk for all tasks, or one for each, and an affine Q-head a task."""

    def __init__(self, trunks: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(task.actions)) for task in GAMES)
        layers = (
            nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
            for _ in range(trunks)
        )
        self.trunks = nn.ModuleList(layers)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """[T, n, INPUTS] → each task's values of its actions, T times [n, A]."""
        if len(self.trunks) == 1:
            features = self.trunks[0](inputs)
        else:
            features = [trunk(x) for trunk, x in zip(self.trunks, inputs, strict=True)]
        return [head(x) for head, x in zip(self.heads, features, strict=True)]


class Networks(nn.Module):
    """The network that learns, and the slow copy that rates the future and plays the tests."""

    def __init__(self, trunks: int, rate: float) -> None:
        super().__init__()
        self.learning = Network(trunks)
        self.slow = deepcopy(self.learning).requires_grad_(False)
        self._rate = rate

    def follow(self) -> None:
        """The slow copy takes a small step towards the other."""
        for slow, learning in zip(self.slow.parameters(), self.learning.parameters(), strict=True):
            slow.lerp_(learning.detach(), self._rate)


class Agent:
    """One run."""

    tasks = TASKS

    def __init__(self, config: RlConfig, job: Job) -> None:
        self._config, self._seed = config, job.seed
        self.model = Networks(len(TASKS) if job.method == "single" else 1, config.slow_rate)
        network = self.model.learning
        last: Any = network.trunks[0]
        self.weighting = weighting(job.method, Setting(TASKS, last[-2], config.alpha, config.weight_lr, job.weights))
        self.optimizer = torch.optim.Adam([*network.parameters(), *self.weighting.parameters()], lr=job.lr)
        self.world = World(config, job.seed)
        generator = torch.Generator().manual_seed(job.seed)
        for _ in range(config.warm_up):
            self.world.move(random_actions(config.copies, generator))
        self._random = play(lambda inputs: random_actions(inputs.shape[1], generator), config.test_games, job.seed)

    def losses(self, step: int) -> Tensor:
        """Moves once in every game, then the mean squared temporal differences of remembered moves, [T]."""
        generator = torch.Generator().manual_seed((self._seed + 1) * 1_000_003 + step)
        self.model.follow()
        self.world.move(self._explore(step, generator))
        moves = self.world.sample(self._config.batch, generator)
        targets = self._targets(moves)
        values = self.model.learning(moves.before)
        rows = zip(values, moves.actions, targets, strict=True)
        return torch.stack([F.mse_loss(_of(q, actions), target) for q, actions, target in rows])

    def evaluate(self) -> dict[str, float]:
        """Mean returns of the test games, of this agent and of random play, and the share of solved."""
        returns = play(lambda inputs: greedy(self.model.slow(inputs)), self._config.test_games, self._seed)
        shares = [(r - low) / (task.solved - low) for r, low, task in zip(returns, self._random, GAMES, strict=True)]
        return {
            SCORE: 100 * sum(shares) / len(shares),
            **{f"return/{task}": value for task, value in zip(TASKS, returns, strict=True)},
            **{f"random/{task}": value for task, value in zip(TASKS, self._random, strict=True)},
        }

    @torch.no_grad()
    def _explore(self, step: int, generator: torch.Generator) -> Tensor:
        share = max(0.05, 1 - 0.95 * step / (self._config.exploring * self._config.steps))
        best = greedy(self.model.learning(self.world.inputs))
        tried = random_actions(self._config.copies, generator)
        return torch.where(torch.rand(best.shape, generator=generator) < share, tried, best)

    @torch.no_grad()
    def _targets(self, moves: Moves) -> Tensor:
        """Scaled reward plus what the future is worth: the learner chooses, the slow copy rates. [T, n]."""
        best = greedy(self.model.learning(moves.after))
        rated = self.model.slow(moves.after)
        future = torch.stack([_of(q, actions) for q, actions in zip(rated, best, strict=True)])
        scales = torch.tensor([task.scale for task in GAMES]).unsqueeze(1)
        return scales * moves.rewards + self._config.discount * future.masked_fill(moves.ended, 0)


def _of(values: Tensor, actions: Tensor) -> Tensor:
    """The values [n, A] of the actions [n]."""
    return values.gather(1, actions.unsqueeze(1)).squeeze(1)


def greedy(values: Sequence[Tensor]) -> Tensor:
    """T times [n, A] → the best actions, [T, n]."""
    return torch.stack([q.argmax(1) for q in values])


def random_actions(n: int, generator: torch.Generator) -> Tensor:
    """Uniform over each task's own actions, [T, n]."""
    counts = torch.tensor([len(task.actions) for task in GAMES]).unsqueeze(1)
    return (torch.rand(len(TASKS), n, generator=generator) * counts).long()


def play(policy: Callable[[Tensor], Tensor], n: int, seed: int) -> list[float]:
    """Each task's mean return over `n` whole games, in gymnasium's units; a seed's starts are always the same."""
    games = Games(n)
    playing = [(task, copy) for task in range(len(TASKS)) for copy in range(n)]
    for task, copy in playing:
        games.start(task, copy, TEST_GAMES + 1000 * seed + copy)
    returns = torch.zeros(len(TASKS), n)
    over = torch.zeros(len(TASKS), n, dtype=torch.bool)
    while playing:
        moves = games.move(policy(games.inputs), playing)
        returns += moves.rewards
        over |= moves.over
        playing = [(task, copy) for task, copy in (~over).nonzero().tolist()]
    return returns.mean(1).tolist()
