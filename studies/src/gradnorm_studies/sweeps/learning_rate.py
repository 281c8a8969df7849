"""Learning-rate search: every run of a study at every rate, on validation data and on seeds that no study reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradnorm_studies.analysis.claims import spread
from gradnorm_studies.analysis.metrics import VALIDATION, Metrics
from gradnorm_studies.analysis.report import StudyReport, Table
from gradnorm_studies.engine.experiment import Experiment, Job, Stop
from gradnorm_studies.engine.settings import config_table
from gradnorm_studies.engine.study import Study

FIRST_SEED = 100
"""First seed of the search; reported seeds count from 0."""


class Search(Study[Any]):
    """A study's runs, each at each of its `search_rates`, and a table of the best rates.

    Args:
        study: The study.
    """

    def __init__(self, study: Study[Any]) -> None:
        super().__init__(study.config)
        self.study = study
        self.name, self.problems, self.metric = f"{study.name}-search", study.problems, study.metric
        self.late, self.gpus = study.late, study.gpus

    def tasks(self, problem: str) -> tuple[str, ...]:
        return self.study.tasks(problem)

    def jobs(self) -> list[Job]:
        """The study's jobs at every rate; a static run takes its weights from a run at the same rate."""
        return [_at(job, lr) for job in self.study.jobs() for lr in self.study.search_rates]

    def experiment(self, job: Job) -> Experiment:
        return self.study.experiment(job)

    def train(self, job: Job, folder: Path, stop: Stop) -> bool:
        return self.study.train(job, folder, stop)

    def lead(self) -> str:
        return (
            f"Every method at every rate, the same for all, on seeds from {FIRST_SEED}, which are never reported, by "
            f"{self.metric.name} on validation data after {self.config.steps:,} steps, {self.config.seeds} "
            f"{'seed' if self.config.seeds == 1 else 'seeds'} each. Where the best is the smallest or largest that was "
            f"tried, a better one may lie beyond. Static weights are tried as the averages of a run at the same rate; "
            f"in the study they are those of a run at the rate that is best for it."
        )

    def report(self, metrics: Metrics, figures: Path) -> StudyReport:
        """One row per method, one column per rate, and the best rates as `learning_rates.json`."""
        metrics = metrics.late(self.late)
        best: dict[str, dict[str, float]] = {}
        rows = []
        for problem, label in dict.fromkeys((job.problem, _name(job)) for job in self.study.jobs()):
            finals = self._finals(metrics, problem, label)
            sign = -1 if self.metric.largest else 1
            best.setdefault(problem, {})[label] = min(finals, key=lambda lr: sign * _worth(finals[lr].mean(), sign))
            rows.append((problem, label, *map(spread, finals.values()), _placed(best[problem][label], list(finals))))
        header = ("on", "method", *(f"lr {lr:g}" for lr in self.study.search_rates), "best")
        return StudyReport(
            title=f"Learning rates for {self.study.name}",
            command=f"{self.study.command()} --search",
            lead=[self.lead()],
            tables=[Table(f"Validation: {self.metric.name}", header, rows)],
            settings=config_table(self.config),
            data={"learning_rates.json": {str(self.config.steps): best}},
        )

    def _finals(self, metrics: Metrics, problem: str, label: str):
        """[seeds] by rate, on the validation data."""
        name = VALIDATION + self.metric.name
        return {lr: metrics.final(problem, _label(label, lr), name) for lr in self.study.search_rates}


def _placed(best: float, tried: Sequence[float]) -> str:
    """The best rate, and whether it lies at an end of those that were tried.

    Examples:
        >>> _placed(0.01, [0.001, 0.003, 0.01]), _placed(0.003, [0.001, 0.003, 0.01])
        ('0.01, the largest', '0.003')
    """
    ends = {max(tried): ", the largest", min(tried): ", the smallest"} if len(tried) > 1 else {}
    return f"{best:g}{ends.get(best, '')}"


def _worth(value: float, sign: int) -> float:
    """A run that diverged is worth less than any other."""
    return value if value == value else sign * float("inf")


def _at(job: Job, lr: float) -> Job:
    source = job.weights_from and _at(job.weights_from, lr)
    return replace(job, seed=FIRST_SEED + job.seed, lr=lr, label=_label(_name(job), lr), weights_from=source)


def _name(job: Job) -> str:
    return job.label or job.method


def _label(name: str, lr: float) -> str:
    return f"{name} at {lr:g}"
