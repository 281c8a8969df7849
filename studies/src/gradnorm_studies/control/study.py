"""One agent on three games of gymnasium: a DQN, and an actor-critic.

The games are in `environments.py`, what both agents have in common in `agent.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import RULES, Claim
from gradnorm_studies.analysis.metrics import Key, Metrics, Quantity
from gradnorm_studies.analysis.report import Table
from gradnorm_studies.control.agent import SOLVED, Agent
from gradnorm_studies.control.dqn import Dqn
from gradnorm_studies.control.environments import ENVIRONMENTS, GAMES
from gradnorm_studies.control.ppo import Ppo
from gradnorm_studies.control.settings import RlConfig
from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.engine.study import Extra, Study
from gradnorm_studies.weightings import AVERAGED

AGENTS = {"DQN": Dqn, "PPO": Ppo}
"""The agents by problem."""
POSITIVE = ("divided", "uncertainty", "geometric", "dwa")
"""Methods that need positive losses: they divide by a loss, take its logarithm, or fall without bound below 0."""

SMALL, LARGE = "CartPole", "Pendulum"
"""The games with the smallest and the largest rewards; Acrobot's are as small as CartPole's."""
MEAN, WORST = Quantity("normalized return %", largest=True), Quantity("worst game %", largest=True)
"""Of returns normalized so that random play is 0 and an agent per game is 100: the mean over games, and the least."""


def normalized(metrics: Metrics, problem: str) -> Metrics:
    """Add each game's return, from random play (0 %) to an agent for it alone (100 %); their mean and the worst.

    Both references are means over seeds: single runs differ too much to refer to one seed's. Where `single` was not
    run, nothing is added.
    """
    if "single" not in metrics.methods(problem):
        return metrics
    for game in GAMES:
        metrics = _normalized(metrics, problem, game)
    shares = [f"normalized/{game}" for game in GAMES]
    metrics = metrics.derived(MEAN.name, shares, lambda _, row: sum(row.values()) / len(row), problem)
    # NumPy's minimum keeps a NaN.
    return metrics.derived(WORST.name, shares, lambda _, row: float(np.min([*row.values()])), problem)


def _normalized(metrics: Metrics, problem: str, game: str) -> Metrics:
    name = f"return/{game}"
    low, high = (float(metrics.final(problem, "single", mark).mean()) for mark in (f"random/{game}", name))

    def share(_: Key, row: dict[str, float]) -> float:
        return 100 * (row[name] - low) / (high - low) if high != low else math.nan

    return metrics.derived(f"normalized/{game}", [name], share, problem)


def _return(game: str) -> Quantity:
    return Quantity(f"return/{game}", largest=True)


def _smallest(problem: str) -> str:
    """The task of the smallest losses, by rewards of 1; PPO's policy losses have no unit."""
    return SMALL if problem == "DQN" else f"policy {SMALL}"


def _largest(problem: str) -> str:
    """The task of the largest losses, which grow with the square of the rewards."""
    return LARGE if problem == "DQN" else f"value {LARGE}"


def _claims_of(rule: str, method: str) -> list[Claim]:
    """What is asked of one of both updates."""
    return [
        Claim(f"{rule} ends above equal weights, by the mean over games", REASON, claims.beats(MEAN, method, "equal")),
        Claim(
            f"{rule} ends above equal weights, by the worst game",
            REASON,
            claims.beats(WORST, method, "equal"),
        ),
        Claim(
            f"{rule}: {LARGE}, whose rewards are largest, pays for it and ends below equal weights'",
            REASON,
            claims.beats(_return(LARGE), "equal", method),
        ),
        Claim(
            f"{rule} raises the weight of the smallest losses and lowers that of the largest",
            REASON,
            claims.ordered(method, _smallest, _largest),
        ),
        *(
            Claim(f"{rule} ends above {name}, by the mean", REASON, claims.beats(MEAN, method, other))
            for other, name in OTHERS.items()
        ),
        Claim(
            f"{rule}'s averages end above equal weights, by the mean",
            "§5.2",
            claims.beats(MEAN, AVERAGED[method], "equal"),
        ),
        Claim(
            f"{rule} with one agent ends above one per game, by the mean",
            REASON,
            claims.beats(MEAN, method, "single"),
        ),
    ]


REASON = "recommended use"
OTHERS = {
    "uncertainty": "uncertainty weighting",
    "geometric": "the geometric mean of the losses",
    "random": "random weights",
}
CLAIMS = (
    Claim(
        "With equal weights a game starves: the worst one ends below an agent for it alone",
        REASON,
        claims.beats(WORST, "single", "equal"),
    ),
    *(claim for rule, method in RULES.items() for claim in _claims_of(rule, method)),
)


class Rl(Study[RlConfig]):
    """Two agents, by the games' temporal differences, and by the losses of an actor-critic."""

    name = "rl"
    title = "One agent for three games"
    summary = "One DQN and one actor-critic (PPO) for three games of gymnasium, with the games' own rewards."
    default = RlConfig()
    extra = Extra("rl", ("gymnasium",))
    problems = tuple(AGENTS)
    metric = Quantity(SOLVED, largest=True)
    quantities = (MEAN, WORST, *map(_return, GAMES))
    claims = CLAIMS
    is_papers = False
    late = 0.25
    search_rates = (3e-4, 1e-3, 3e-3)
    default_lr = 1e-3

    def tasks(self, problem: str) -> tuple[str, ...]:
        return AGENTS[problem].tasks

    def jobs_of(self, problem: str, seed: int, methods: Sequence[str]) -> list[Job]:
        """Without the methods that need positive losses, where some are negative."""
        kept = [method for method in methods if problem == "DQN" or method not in POSITIVE]
        return super().jobs_of(problem, seed, kept)

    def experiment(self, job: Job) -> Agent:
        return AGENTS[job.problem](self.config, job)

    def derive(self, metrics: Metrics) -> Metrics:
        """Add the normalized returns."""
        for problem in self.problems:
            metrics = normalized(metrics, problem)
        return metrics

    def more_tables(self, metrics: Metrics) -> list[Table]:
        """What returns are measured by."""
        return [_references(metrics, problem) for problem in self.problems if metrics.methods(problem)]

    def lead(self) -> str:
        config = self.config
        earned = ", ".join(f"{spec.reward:g} in {spec.name}" for spec in ENVIRONMENTS)
        played = config.steps * config.num_envs
        return (
            f"One network plays {', '.join(GAMES)}, with one trunk, heads per game, and the games' own rewards: random "
            f"play earns about {earned} per step. DQN balances the games' mean squared temporal-difference errors. "
            f"PPO balances two losses per game: the policy's, with its entropy (× {config.entropy_coefficient:g}), and "
            f"the values' (× {config.value_coefficient:g}), by these usual coefficients alone where weights are equal. "
            f"How much entropy is wanted is a choice and no matter of scale, so it is a part of the policy's loss, "
            f"which is of either sign: PPO is without the methods that need positive losses ({', '.join(POSITIVE)}). "
            f"Its learning rate falls to 0, DQN's is constant. "
            f"All methods with a seed but single start from the same initial values, and all from the same episodes, "
            f"for {config.steps:,} steps: "
            f"{played:,} transitions per game for DQN, {_played(config):,} for PPO. A run's result is its mean over "
            f"the last quarter of its records. Single is one network per game."
        )


def _played(config: RlConfig) -> int:
    """Transitions per game of a PPO run."""
    return math.ceil(config.steps / config.updates) * config.rollout_steps * config.rollout_envs


def _references(metrics: Metrics, problem: str) -> Table:
    """Per game, the returns of random play and of a solved game."""
    method = metrics.methods(problem)[0]
    rows = [
        (
            spec.name,
            f"{spec.reward:g}",
            claims.spread(metrics.final(problem, method, f"random/{spec.name}")),
            f"{spec.solved:g}",
        )
        for spec in ENVIRONMENTS
    ]
    note = f"{SOLVED.capitalize()}: 0 is random play, 100 is every game solved, on average over games."
    return Table(
        f"The games: {problem}",
        ("game", "reward per step", "return of random play", "solved"),
        rows,
        note,
        terminal=None,
    )
