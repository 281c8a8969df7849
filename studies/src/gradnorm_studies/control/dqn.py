"""The agent: a deep Q-network with one trunk for all tasks, and a Q-head, environments and a replay buffer per task.

The losses are mean squared temporal-difference (TD) errors (double Q-learning), so they grow with the square of the
rewards, and the largest rewards dominate the trunk. TD errors do not measure progress: they rise as the agent finds
larger returns.

Unlike a data set, the environments depend on the agent. Their whole state is the experiment's `world`; random numbers
are drawn from the seed and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradnorm_studies.control.environments import ENVIRONMENTS, INPUTS, TASKS, Transitions, VectorEnvironments
from gradnorm_studies.engine.settings import setting
from gradnorm_studies.engine.study import Job
from gradnorm_studies.weightings import WeightingConfig, weighting

WIDTH = 128
SCORE = "share of solved %"
"""The figure by which learning rates are chosen: random play is 0, solving all tasks is 100."""
TRAINING_SEED, EVAL_SEED = 1_000_003, 2_000_000_003
"""First seeds of episodes: those of training count up from the first, far below those of evaluation."""


@dataclass(frozen=True)
class RlConfig:
    """Chosen before any result of a method that shares a network was seen."""

    seeds: int = setting(
        3, "The fewest that show a spread; a seed sets the network, the episodes and all randomness.", least=1
    )
    steps: int = setting(
        15_000, "An agent per task learns all three; all runs take about seven minutes on two cores.", least=1
    )
    num_envs: int = setting(4, "Copies of each environment: 60,000 transitions per task over a run.", least=1)
    batch: int = setting(64, "A common size; drawn from each task's own replay buffer.", least=1)
    buffer_size: int = setting(50_000, "Transitions in the replay buffer per task: the last 12,500 steps.", least=1)
    learning_starts: int = setting(
        250, "Random steps of every copy first, so that no batch is from one episode.", least=1
    )
    discount: float = setting(0.98, "A horizon of 50 steps: Acrobot needs about 80, CartPole falls within 10.", above=0)
    exploration_fraction: float = setting(0.3, "Share of the run over which epsilon falls from 1 to 0.05.", above=0)
    tau: float = setting(0.005, "A common rate of the target network's soft update.", above=0)
    eval_episodes: int = setting(
        20, "From the same starts for all methods with a seed; the target network acts.", least=1
    )
    alpha: float = setting(
        0.12,
        "The paper's for tasks that differ in scale alone, §4. Small, since TD errors do not fall as the agent learns: "
        "their ratios say little of progress.",
        least=0,
    )
    weight_lr: float = setting(0.025, "The paper's, §5, with Adam.", above=0)
    record_every: int = setting(500, "30 points per curve.", least=1)


class World:
    """The environments and the replay buffer: all state that changes with the agent."""

    def __init__(self, config: RlConfig, seed: int) -> None:
        self._envs = VectorEnvironments(config.num_envs)
        self._all = [(task, copy) for task in range(len(TASKS)) for copy in range(config.num_envs)]
        self._first_seed, self._episodes, self._stored = (seed + 1) * TRAINING_SEED, 0, 0
        for at in self._all:
            self._reset(*at)
        sizes = len(TASKS), config.buffer_size
        flags = [torch.zeros(sizes, dtype=torch.bool) for _ in range(2)]
        inputs = [torch.zeros(*sizes, INPUTS) for _ in range(2)]
        self._buffer = Transitions(
            inputs[0], torch.zeros(sizes, dtype=torch.long), torch.zeros(sizes), inputs[1], *flags
        )

    @property
    def inputs(self) -> Tensor:
        """The network's inputs, [T, num_envs, INPUTS]."""
        return self._envs.inputs

    def step(self, actions: Tensor) -> None:
        """Step every environment once and store the transitions; episodes that are done restart."""
        transitions = self._envs.step(actions, self._all)
        places = (self._stored + torch.arange(self._envs.num_envs)) % self._buffer.actions.shape[1]
        for store, new in zip(self._buffer, transitions, strict=True):
            store[:, places] = new
        self._stored += self._envs.num_envs
        for task, copy in transitions.done.nonzero().tolist():
            self._reset(task, copy)

    def sample(self, n: int, generator: torch.Generator) -> Transitions:
        """`n` transitions per task from the replay buffer."""
        known = min(self._stored, self._buffer.actions.shape[1])
        places = torch.randint(known, (len(TASKS), n), generator=generator)
        return Transitions(*(store[torch.arange(len(TASKS))[:, None], places] for store in self._buffer))

    def _reset(self, task: int, copy: int) -> None:
        self._envs.reset(task, copy, self._first_seed + self._episodes)
        self._episodes += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "envs": self._envs.state_dict(),
            "buffer": list(self._buffer),
            "episodes": self._episodes,
            "stored": self._stored,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._envs.load_state_dict(state["envs"])
        self._buffer = Transitions(*state["buffer"])
        self._episodes, self._stored = state["episodes"], state["stored"]


class QNetwork(nn.Module):
    """One trunk for all tasks, or one per task, and an affine Q-head per task."""

    def __init__(self, trunks: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(spec.actions)) for spec in ENVIRONMENTS)
        layers = (
            nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
            for _ in range(trunks)
        )
        self.trunks = nn.ModuleList(layers)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """[T, n, INPUTS] → Q-values per task, T times [n, A]."""
        if len(self.trunks) == 1:
            features = self.trunks[0](inputs)
        else:
            features = [trunk(x) for trunk, x in zip(self.trunks, inputs, strict=True)]
        return [head(x) for head, x in zip(self.heads, features, strict=True)]


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


class Agent:
    """The experiment of one job."""

    tasks = TASKS

    def __init__(self, config: RlConfig, job: Job) -> None:
        self._config, self._seed = config, job.seed
        self.model = QNetworks(len(TASKS) if job.method == "single" else 1, config.tau)
        network = self.model.online
        last: Any = network.trunks[0]
        self.weighting = weighting(
            job.method, WeightingConfig(TASKS, last[-2], config.alpha, config.weight_lr, job.weights)
        )
        self.optimizer = torch.optim.Adam([*network.parameters(), *self.weighting.parameters()], lr=job.lr)
        self.world = World(config, job.seed)
        generator = torch.Generator().manual_seed(job.seed)
        for _ in range(config.learning_starts):
            self.world.step(random_actions(config.num_envs, generator))
        self._random = rollout(
            lambda inputs: random_actions(inputs.shape[1], generator), config.eval_episodes, job.seed
        )

    def losses(self, step: int) -> Tensor:
        """One step in every environment, then the mean squared TD errors of a batch from the replay buffer, [T]."""
        generator = torch.Generator().manual_seed((self._seed + 1) * 1_000_003 + step)
        self.model.update_target()
        self.world.step(self._explore(step, generator))
        batch = self.world.sample(self._config.batch, generator)
        targets = self._targets(batch)
        values = self.model.online(batch.inputs)
        rows = zip(values, batch.actions, targets, strict=True)
        return torch.stack([F.mse_loss(_of(q, actions), target) for q, actions, target in rows])

    def evaluate(self) -> dict[str, float]:
        """Mean evaluation returns of this agent and of random play, and the share of solved."""
        returns = rollout(lambda inputs: greedy(self.model.target(inputs)), self._config.eval_episodes, self._seed)
        results = zip(returns, self._random, ENVIRONMENTS, strict=True)
        shares = [(r - low) / (spec.solved - low) for r, low, spec in results]
        return {
            SCORE: 100 * sum(shares) / len(shares),
            **{f"return/{task}": value for task, value in zip(TASKS, returns, strict=True)},
            **{f"random/{task}": value for task, value in zip(TASKS, self._random, strict=True)},
        }

    @torch.no_grad()
    def _explore(self, step: int, generator: torch.Generator) -> Tensor:
        """ε-greedy actions, [T, num_envs]."""
        epsilon = max(0.05, 1 - 0.95 * step / (self._config.exploration_fraction * self._config.steps))
        best = greedy(self.model.online(self.world.inputs))
        tried = random_actions(self._config.num_envs, generator)
        return torch.where(torch.rand(best.shape, generator=generator) < epsilon, tried, best)

    @torch.no_grad()
    def _targets(self, batch: Transitions) -> Tensor:
        """Double-Q targets, [T, n]: the online network selects the next action, the target network evaluates it."""
        best = greedy(self.model.online(batch.next_inputs))
        evaluated = self.model.target(batch.next_inputs)
        future = torch.stack([_of(q, actions) for q, actions in zip(evaluated, best, strict=True)])
        scales = torch.tensor([spec.scale for spec in ENVIRONMENTS]).unsqueeze(1)
        return scales * batch.rewards + self._config.discount * future.masked_fill(batch.terminated, 0)


def _of(values: Tensor, actions: Tensor) -> Tensor:
    """The Q-values [n] of the actions [n]; `values` is [n, A]."""
    return values.gather(1, actions.unsqueeze(1)).squeeze(1)


def greedy(values: Sequence[Tensor]) -> Tensor:
    """T times [n, A] → the best actions, [T, n]."""
    return torch.stack([q.argmax(1) for q in values])


def random_actions(n: int, generator: torch.Generator) -> Tensor:
    """Uniform over each task's own actions, [T, n]."""
    counts = torch.tensor([len(spec.actions) for spec in ENVIRONMENTS]).unsqueeze(1)
    return (torch.rand(len(TASKS), n, generator=generator) * counts).long()


def rollout(policy: Callable[[Tensor], Tensor], n: int, seed: int) -> list[float]:
    """Mean return per task over `n` episodes, in gymnasium's units; a seed's initial states are always the same."""
    envs = VectorEnvironments(n)
    active = [(task, copy) for task in range(len(TASKS)) for copy in range(n)]
    for task, copy in active:
        envs.reset(task, copy, EVAL_SEED + 1000 * seed + copy)
    returns = torch.zeros(len(TASKS), n)
    done = torch.zeros(len(TASKS), n, dtype=torch.bool)
    while active:
        transitions = envs.step(policy(envs.inputs), active)
        returns += transitions.rewards
        done |= transitions.done
        active = [(task, copy) for task, copy in (~done).nonzero().tolist()]
    return returns.mean(1).tolist()
