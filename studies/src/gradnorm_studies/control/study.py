"""One agent on three of gymnasium's tasks, whose rewards differ a hundredfold in scale.

A deep Q-network: one trunk reads the observations of all tasks, padded to one width and marked with the task's place;
each task has a Q-head over its own actions, its own games and its own replay memory. The losses are mean squared
temporal differences (double Q-learning), so they grow with the square of the rewards, and the largest rewards rule the
trunk. Temporal differences are no measure of progress: they rise as the agent learns what there is to win.

Unlike a data set, the games depend on the agent. All that changes with them is the experiment's `world`; chance is
drawn by seed and step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import Claim
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import Figure, Report, Table
from gradnorm_studies.engine.settings import command_line, config_table, setting
from gradnorm_studies.engine.study import Job
from gradnorm_studies.weightings import Setting, weighting


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
SMALLEST, LARGEST = TASKS[0], TASKS[-1]
OBSERVED = max(len(task.limits) for task in GAMES)
INPUTS, WIDTH = OBSERVED + len(TASKS), 128
PROBLEM = "control"
SCORE = "share of solved %"
"""One figure for a run by itself, by which learning rates are chosen: random play is 0, solving all tasks is 100."""
MEAN, WORST = "normalised return", "worst task"
LATE = 0.25
"""Returns of Q-learning jump from one test to the next, so a run's result is its mean over this last share."""
TRAINING_GAMES, TEST_GAMES = 1_000_003, 2_000_000_003
"""Seeds of games: those of training count up from the first, far below those of tests."""

RATES = {"single": 1e-3, "equal": 3e-4, "uncertainty": 1e-3, "gradnorm": 3e-3, "static": 3e-3}
"""The outcome of `gradnorm reproduce rl --search --seeds 1 --steps 10000 --test-games 10`, `results/rl/search.md`."""


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


# ------------------------------------------------------------------------------------------------------------ games


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


# ------------------------------------------------------------------------------------------------------------ agent


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


# ----------------------------------------------------------------------------------------------------------- report


def normalised(metrics: Metrics, ends: Metrics) -> Metrics:
    """Adds each task's return as a share of the way from random play to an agent of its own, in %; mean and worst.

    Both marks are means over seeds: single runs differ so much that shares of one seed's would say little.

    Args:
        metrics: Returns.
        ends: Results of runs, `single` among them, and returns of random play.
    """

    def share(quantity: str, low: float, high: float, _: int, row: dict[str, float]) -> float:
        return 100 * (row[quantity] - low) / (high - low) if high != low else math.nan

    for task in TASKS:
        name = f"return/{task}"
        marks = (float(ends.final(PROBLEM, "single", mark).mean()) for mark in (f"random/{task}", name))
        metrics = metrics.derived(f"normalised/{task}", (name,), partial(share, name, *marks))
    shares = tuple(f"normalised/{task}" for task in TASKS)
    metrics = metrics.derived(MEAN, shares, lambda _, row: sum(row.values()) / len(row))
    return metrics.derived(WORST, shares, lambda _, row: min(row.values()))


def _above(metric: str, method: str, other: str) -> claims.Look:
    return claims.below(metric, method, other, largest=True)


REASON = "recommended use"
CLAIMS = (
    Claim(
        f"With equal weights {SMALLEST}, whose rewards are smallest, suffers: it ends below an agent of its own",
        REASON,
        _above(f"normalised/{SMALLEST}", "single", "equal"),
    ),
    Claim("GradNorm ends above equal weights, by the mean over tasks", REASON, _above(MEAN, "gradnorm", "equal")),
    Claim("…and by the worst task", REASON, _above(WORST, "gradnorm", "equal")),
    Claim(
        f"{SMALLEST} is learned better by GradNorm than with equal weights",
        REASON,
        _above(f"normalised/{SMALLEST}", "gradnorm", "equal"),
    ),
    Claim(
        f"…and {LARGEST}, whose rewards are largest, is not learned worse",
        REASON,
        _above(f"normalised/{LARGEST}", "gradnorm", "equal"),
    ),
    Claim(
        "GradNorm raises the weight of the smallest rewards and lowers that of the largest",
        REASON,
        claims.ordered("gradnorm", lambda _: SMALLEST, lambda _: LARGEST),
    ),
    Claim("GradNorm ends above uncertainty weighting, by the mean", REASON, _above(MEAN, "gradnorm", "uncertainty")),
    Claim("Static GradNorm weights end above equal weights, by the mean", "§5.2", _above(MEAN, "static", "equal")),
    Claim(
        "One GradNorm agent ends above an agent for each task, by the mean", REASON, _above(MEAN, "gradnorm", "single")
    ),
)


@dataclass(frozen=True)
class Rl:
    """The study; see the module."""

    config: RlConfig = field(default_factory=RlConfig)
    name: ClassVar[str] = "rl"
    config_class: ClassVar[type[RlConfig]] = RlConfig
    summary: ClassVar[str] = "One agent on three gymnasium tasks whose rewards differ a hundredfold in scale."
    extra: ClassVar[tuple[str, tuple[str, ...]]] = ("rl", ("gymnasium",))
    metric: ClassVar[str] = SCORE
    largest: ClassVar[bool] = True
    late: ClassVar[float] = LATE

    def task_names(self, problem: str) -> tuple[str, ...]:
        """Those of the one problem there is."""
        return TASKS

    def jobs(self) -> list[Job]:
        """GradNorm first, since the static runs wait for it."""
        jobs = []
        for seed in range(self.config.seeds):
            gradnorm = Job(PROBLEM, "gradnorm", seed, RATES["gradnorm"])
            jobs += [gradnorm, *(Job(PROBLEM, m, seed, RATES[m]) for m in ("single", "equal", "uncertainty"))]
            jobs += [Job(PROBLEM, "static", seed, RATES["static"], weights_from=gradnorm)]
        return jobs

    def experiment(self, job: Job) -> Agent:
        """One run."""
        return Agent(self.config, job)

    def report(self, metrics: Metrics, figures: Path) -> Report:
        """Tables, verdicts, figures."""
        late = metrics.late(LATE)
        curves, ends = normalised(metrics, late), normalised(late, late)
        asked = claims.as_questions(claims.table(CLAIMS, ends, (PROBLEM,)))
        return Report(
            title="GradNorm on games whose rewards differ in scale",
            command=command_line(self.name, self.config),
            lead=[_lead(self.config), claims.losses_of("gradnorm", ends, (PROBLEM,), MEAN, largest=True)],
            tables=[_shares(ends), _returns(ends), _weights(ends), asked],
            figures=_figures(curves, ends, figures),
            settings=config_table(self.config),
        )


def _lead(config: RlConfig) -> str:
    scales = ", ".join(f"{task.name}'s by {task.scale:g}" for task in GAMES)
    return (
        f"One Q-learning agent plays {', '.join(TASKS)} with one trunk and a head a task. For learning, rewards are "
        f"multiplied: {scales}; a step of random play then earns about 0.05, −0.5 and −6, a hundredfold from first to "
        f"last. Returns are in gymnasium's own units. All methods of a seed start from the same values and the same "
        f"games, for {config.steps:,} steps and {config.steps * config.copies:,} moves a task. A run's result is its "
        f"mean over the last quarter of the run; figures are mean ± standard deviation over {config.seeds} seeds."
    )


def _table(title: str, ends: Metrics, columns: dict[str, str], note: str = "") -> Table:
    """A row a method, a column a quantity, by its heading."""
    rows = []
    for method in ends.methods(PROBLEM):
        values = [claims.spread(ends.final(PROBLEM, method, quantity)) for quantity in columns.values()]
        rows.append((method, *values))
    return Table(title, ("method", *columns), rows, note)


def _shares(ends: Metrics) -> Table:
    columns = {"mean over tasks %": MEAN, f"{WORST} %": WORST, **{f"{task} %": f"normalised/{task}" for task in TASKS}}
    note = "0 is random play, 100 is `single`: an agent for each task; both on average over seeds."
    return _table("Normalised returns", ends, columns, note)


def _returns(ends: Metrics) -> Table:
    table = _table("Returns", ends, {task: f"return/{task}" for task in TASKS} | {SCORE: SCORE})
    chance = (claims.spread(ends.final(PROBLEM, "single", f"random/{task}")) for task in TASKS)
    solved = ", ".join(f"{task.name} {task.solved:g}" for task in GAMES)
    note = f"Share of solved: 0 is random play, 100 is {solved}, on average over tasks."
    return replace(table, rows=[("random play", *chance, "0"), *table.rows], note=note)


def _weights(ends: Metrics) -> Table:
    return _table("Weights", ends, {f"w, {task}": f"weight/{task}" for task in TASKS})


def _figures(curves: Metrics, ends: Metrics, folder: Path) -> list[Figure]:
    from gradnorm_studies.analysis import figures

    methods = curves.methods(PROBLEM)
    steps = curves.steps(PROBLEM, "gradnorm", MEAN)
    panels = [("mean over tasks", MEAN, "% of an agent alone"), *((task, f"return/{task}", "return") for task in TASKS)]
    learning, last = [], []
    for title, quantity, unit in panels:
        series = {m: curves.series(PROBLEM, m, quantity) for m in methods}
        learning.append(figures.Curves(title, steps, series, unit))
        last.append(figures.Ends(title, {m: ends.final(PROBLEM, m, quantity) for m in methods}, unit))
    weights = []
    for method in ("gradnorm", "uncertainty"):
        traces = {task: curves.series(PROBLEM, method, f"weight/{task}") for task in TASKS}
        weights.append(figures.Curves(f"weights, {method}", steps, traces, "weight", log=True))
    over_time, finals = figures.over_time, figures.finals
    return [
        Figure(
            over_time(folder / "rl.png", [*learning, *weights], columns=2),
            "Test games as the agent learns, and its weights. Lines are means over seeds, bands their range.",
        ),
        Figure(finals(folder / "finals.png", last, columns=2), "Each run's last quarter, seed by seed, and the mean."),
    ]
