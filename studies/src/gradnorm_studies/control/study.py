"""One agent on three of gymnasium's tasks, whose rewards differ a hundredfold in scale.

The environments are in `environments.py`, the agent in `dqn.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import Claim
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import Figure, StudyReport, Table
from gradnorm_studies.control.dqn import SCORE, Agent, RlConfig
from gradnorm_studies.control.environments import ENVIRONMENTS, TASKS
from gradnorm_studies.engine.settings import command_line, config_table
from gradnorm_studies.engine.study import Job

SMALLEST, LARGEST = TASKS[0], TASKS[-1]
PROBLEM = "control"
MEAN, WORST = "normalized return", "worst task"
LATE = 0.25
"""Returns of Q-learning jump between evaluations, so a run's result is its mean over this last share."""
RATES = {"single": 1e-3, "equal": 3e-4, "uncertainty": 1e-3, "gradnorm": 3e-3, "static": 3e-3}
"""Result of `gradnorm reproduce rl --search --seeds 1 --steps 10000 --eval-episodes 10`, `results/rl/search.md`."""


def normalized(metrics: Metrics, ends: Metrics) -> Metrics:
    """Adds each task's return, from random play (0 %) to a single-task agent (100 %); mean and worst.

    Both references are means over seeds: single runs differ too much to refer to one seed's.

    Args:
        metrics: Returns.
        ends: Results of runs, `single` among them, and returns of random play.
    """

    def share(quantity: str, low: float, high: float, _: int, row: dict[str, float]) -> float:
        return 100 * (row[quantity] - low) / (high - low) if high != low else math.nan

    for task in TASKS:
        name = f"return/{task}"
        marks = (float(ends.final(PROBLEM, "single", mark).mean()) for mark in (f"random/{task}", name))
        metrics = metrics.derived(f"normalized/{task}", (name,), partial(share, name, *marks))
    shares = tuple(f"normalized/{task}" for task in TASKS)
    metrics = metrics.derived(MEAN, shares, lambda _, row: sum(row.values()) / len(row))
    return metrics.derived(WORST, shares, lambda _, row: min(row.values()))


def _above(metric: str, method: str, other: str) -> claims.Look:
    return claims.below(metric, method, other, largest=True)


REASON = "recommended use"
CLAIMS = (
    Claim(
        f"With equal weights {SMALLEST}, whose rewards are smallest, suffers: it ends below a single-task agent",
        REASON,
        _above(f"normalized/{SMALLEST}", "single", "equal"),
    ),
    Claim("GradNorm ends above equal weights, by the mean over tasks", REASON, _above(MEAN, "gradnorm", "equal")),
    Claim("…and by the worst task", REASON, _above(WORST, "gradnorm", "equal")),
    Claim(
        f"{SMALLEST} is learned better by GradNorm than with equal weights",
        REASON,
        _above(f"normalized/{SMALLEST}", "gradnorm", "equal"),
    ),
    Claim(
        f"…and {LARGEST}, whose rewards are largest, is not learned worse",
        REASON,
        _above(f"normalized/{LARGEST}", "gradnorm", "equal"),
    ),
    Claim(
        "GradNorm raises the weight of the smallest rewards and lowers that of the largest",
        REASON,
        claims.ordered("gradnorm", lambda _: SMALLEST, lambda _: LARGEST),
    ),
    Claim("GradNorm ends above uncertainty weighting, by the mean", REASON, _above(MEAN, "gradnorm", "uncertainty")),
    Claim("Static GradNorm weights end above equal weights, by the mean", "§5.2", _above(MEAN, "static", "equal")),
    Claim("One GradNorm agent ends above one agent per task, by the mean", REASON, _above(MEAN, "gradnorm", "single")),
)


@dataclass(frozen=True)
class Rl:
    config: RlConfig = field(default_factory=RlConfig)
    name: ClassVar[str] = "rl"
    config_class: ClassVar[type[RlConfig]] = RlConfig
    summary: ClassVar[str] = "One agent on three gymnasium tasks whose rewards differ a hundredfold in scale."
    extra: ClassVar[tuple[str, tuple[str, ...]]] = ("rl", ("gymnasium",))
    metric: ClassVar[str] = SCORE
    largest: ClassVar[bool] = True
    late: ClassVar[float] = LATE

    def task_names(self, problem: str) -> tuple[str, ...]:
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
        return Agent(self.config, job)

    def report(self, metrics: Metrics, figures: Path) -> StudyReport:
        late = metrics.late(LATE)
        curves, ends = normalized(metrics, late), normalized(late, late)
        asked = claims.as_questions(claims.table(CLAIMS, ends, (PROBLEM,)))
        return StudyReport(
            title="GradNorm on environments whose rewards differ in scale",
            command=command_line(self.name, self.config),
            lead=[_lead(self.config), claims.losses_of("gradnorm", ends, (PROBLEM,), MEAN, largest=True)],
            tables=[_shares(ends), _returns(ends), _weights(ends), asked],
            figures=_figures(curves, ends, figures),
            settings=config_table(self.config),
        )


def _lead(config: RlConfig) -> str:
    scales = ", ".join(f"{spec.name}'s by {spec.scale:g}" for spec in ENVIRONMENTS)
    return (
        f"One Q-learning agent plays {', '.join(TASKS)} with one trunk and a head per task. For learning, rewards are "
        f"multiplied: {scales}; random play then earns about 0.05, −0.5 and −6 per step, a hundredfold from first to "
        f"last. Returns are in gymnasium's own units. All methods with a seed start from the same initial values and "
        f"episodes, for {config.steps:,} steps and {config.steps * config.num_envs:,} transitions per task. A run's "
        f"result is its mean over the last quarter of the run; figures are mean ± standard deviation over "
        f"{config.seeds} seeds."
    )


def _table(title: str, ends: Metrics, columns: dict[str, str], note: str = "") -> Table:
    """One row per method, one column per quantity, by its heading."""
    rows = []
    for method in ends.methods(PROBLEM):
        values = [claims.spread(ends.final(PROBLEM, method, quantity)) for quantity in columns.values()]
        rows.append((method, *values))
    return Table(title, ("method", *columns), rows, note)


def _shares(ends: Metrics) -> Table:
    columns = {"mean over tasks %": MEAN, f"{WORST} %": WORST, **{f"{task} %": f"normalized/{task}" for task in TASKS}}
    note = "0 is random play, 100 is `single`: one agent per task; both on average over seeds."
    return _table("Normalized returns", ends, columns, note)


def _returns(ends: Metrics) -> Table:
    table = _table("Returns", ends, {task: f"return/{task}" for task in TASKS} | {SCORE: SCORE})
    chance = (claims.spread(ends.final(PROBLEM, "single", f"random/{task}")) for task in TASKS)
    solved = ", ".join(f"{spec.name} {spec.solved:g}" for spec in ENVIRONMENTS)
    note = f"Share of solved: 0 is random play, 100 is {solved}, on average over tasks."
    return replace(table, rows=[("random play", *chance, "0"), *table.rows], note=note)


def _weights(ends: Metrics) -> Table:
    return _table("Weights", ends, {f"w, {task}": f"weight/{task}" for task in TASKS})


def _figures(curves: Metrics, ends: Metrics, folder: Path) -> list[Figure]:
    from gradnorm_studies.analysis import figures

    methods = curves.methods(PROBLEM)
    steps = curves.steps(PROBLEM, "gradnorm", MEAN)
    panels = [
        ("mean over tasks", MEAN, "% of a single-task agent"),
        *((task, f"return/{task}", "return") for task in TASKS),
    ]
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
            "Evaluation returns during training, and the weights. Lines are means over seeds, bands their range.",
        ),
        Figure(finals(folder / "finals.png", last, columns=2), "Each run's last quarter, seed by seed, and the mean."),
    ]
