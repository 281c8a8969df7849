"""Learning-rate search, the same for every method of any study, on seeds that no study reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradnorm_studies.analysis.claims import spread
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import StudyReport, Table
from gradnorm_studies.engine.settings import command_line, config_table
from gradnorm_studies.engine.study import Config, Experiment, Job
from gradnorm_studies.engine.training import carry_out

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FIRST_SEED = 100
"""First seed of the search; reported seeds count from 0."""


@dataclass(frozen=True)
class Search:
    """A study's methods, each at each rate, and a table of the best rates."""

    study: Any

    @property
    def name(self) -> str:
        return f"{self.study.name}-search"

    @property
    def config(self) -> Config:
        return self.study.config

    @property
    def gpus(self) -> int:
        return getattr(self.study, "gpus", 0)

    def jobs(self) -> list[Job]:
        """The study's jobs at every rate; a static run takes its weights from GradNorm at the same rate."""
        return [_at(job, lr) for job in self.study.jobs() if not job.label for lr in RATES]

    def experiment(self, job: Job) -> Experiment:
        return self.study.experiment(job)

    def train(self, job: Job, folder: Path, stop: Callable[[int], bool]) -> bool:
        return carry_out(self.study, job, folder, stop)

    def report(self, metrics: Metrics, figures: Path) -> StudyReport:
        """One row per method, one column per rate; ends are smoothed as the study does."""
        metrics = metrics.late(getattr(self.study, "late", 0.0))
        problems = dict.fromkeys(job.problem for job in self.jobs())
        rows = [self._row(metrics, problem, method) for problem in problems for method in _methods(metrics, problem)]
        header = ("on", "method", *(f"lr {lr:g}" for lr in RATES), "best")
        return StudyReport(
            title=f"Learning rates for {self.study.name}",
            command=f"{command_line(self.study.name, self.config)} --search",
            lead=[f"Every method at every rate, on seeds from {FIRST_SEED}, which are never reported."],
            tables=[Table(self.study.metric, header, rows)],
            settings=config_table(self.config),
        )

    def _row(self, metrics: Metrics, problem: str, method: str) -> tuple[str, ...]:
        finals = {lr: metrics.final(problem, _label(method, lr), self.study.metric) for lr in RATES}
        sign = -1 if self.study.largest else 1
        best = min(RATES, key=lambda lr: sign * float(finals[lr].mean()))
        return problem, method, *(spread(values) for values in finals.values()), f"{best:g}"


def _at(job: Job, lr: float) -> Job:
    source = job.weights_from and _at(job.weights_from, lr)
    return replace(job, seed=FIRST_SEED + job.seed, lr=lr, label=_label(job.method, lr), weights_from=source)


def _label(method: str, lr: float) -> str:
    return f"{method} at {lr:g}"


def _methods(metrics: Metrics, problem: str) -> list[str]:
    return list(dict.fromkeys(label.split(" at ")[0] for label in metrics.methods(problem)))
