"""What a study is: its runs, how to build one, and what its report shows. A new study is a subclass of `Study`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch

from gradnorm_studies.analysis import claims, headline, summary
from gradnorm_studies.analysis.claims import Claim, Finding
from gradnorm_studies.analysis.metrics import Metrics, Quantity
from gradnorm_studies.analysis.report import Figure, StudyReport, Table
from gradnorm_studies.engine import rates, training
from gradnorm_studies.engine.experiment import Experiment, Job, Stop
from gradnorm_studies.engine.settings import Config, command_line, config_table, parse_methods, recorded
from gradnorm_studies.weightings import STATIC


class Extra(NamedTuple):
    """An extra of this package, and the packages that it installs."""

    name: str
    packages: tuple[str, ...]


C = TypeVar("C", bound=Config)


class Study(ABC, Generic[C]):
    """Base of all studies. It must be picklable: it is sent to worker processes.

    Args:
        config: The settings. Default: `default`.
    """

    name: str
    """The name that `gradnorm reproduce` takes."""
    title: str
    summary: str
    """One line, for the command line."""
    default: Any
    """The config of `gradnorm reproduce NAME`."""
    presets: ClassVar[Mapping[str, Any]] = {}
    """Configs by name, if there are several; `chooser` is the setting that selects one."""
    chooser: str = "preset"
    extra: Extra | None = None
    """The extra that it needs."""

    problems: tuple[str, ...]
    """Names of the problems, in order."""
    metric: Quantity
    """What runs are compared by, and learning rates are chosen by: a quantity of one run alone."""
    quantities: tuple[Quantity, ...] = ()
    """What tables and figures show beside `metric`, in order."""
    claims: tuple[Claim, ...] = ()
    is_papers: bool = True
    """Whether the claims are the paper's about these very tasks; questions of our own otherwise."""
    late: float = 0.0
    """A run's result is its mean over this last share of its records; 0: the last one."""
    by_validation: bool = False
    """A run's result is instead its record that is best on validation data, as where training is stopped early."""
    search_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """The learning rates that `--search` tries for each method."""
    default_lr: float = 3e-3
    """The rate of methods that were never searched."""
    gpus: int = 0
    """GPUs that a run takes from a cluster that has some."""

    def __init__(self, config: C | None = None) -> None:
        self.config: C = self.default if config is None else config

    # ---------------------------------------------------------------------------------------------- to be defined

    @abstractmethod
    def tasks(self, problem: str) -> tuple[str, ...]:
        """Names of a problem's tasks, in order."""

    @abstractmethod
    def experiment(self, job: Job) -> Experiment:
        """Build a job, its weights filled in; called after seeding with the job's seed."""

    @abstractmethod
    def lead(self) -> str:
        """What was done, for the top of the report."""

    # ------------------------------------------------------------------------------------------ to be changed, if any

    def asked(self) -> Sequence[Claim]:
        """The claims, where they depend on the config."""
        return self.claims

    def jobs(self) -> list[Job]:
        """All runs; those that others depend on first.

        Raises:
            UsageError: `methods` names one that there is not, or static weights without their source.
        """
        methods = parse_methods(self.config)
        seeds = range(self.config.seeds)
        return [job for p in self.problems for seed in seeds for job in self.jobs_of(p, seed, methods)]

    def jobs_of(self, problem: str, seed: int, methods: Sequence[str]) -> list[Job]:
        """The runs of one problem and seed: one per method."""
        return [self._job(problem, method, seed) for method in methods]

    def derive(self, metrics: Metrics) -> Metrics:
        """Add quantities that are computed from several runs."""
        return metrics

    def shown(self, problem: str) -> tuple[Quantity, ...]:
        """The quantities of a problem's tables and figures."""
        return (self.metric, *self.quantities)

    def more_tables(self, metrics: Metrics) -> list[Table]:
        """Tables beside those that all studies have."""
        return []

    def more_figures(self, metrics: Metrics, folder: Path) -> list[Figure]:
        """Figures beside those that all studies have; `folder` is the report's `figures`."""
        return []

    def train(self, job: Job, folder: Path, stop: Stop) -> bool:
        """Train a job from its checkpoint, if there is one; returns whether it is finished."""
        torch.manual_seed(job.seed)
        return training.train(self.experiment(job), job, self.config, folder, stop)

    # ----------------------------------------------------------------------------------------------- the same for all

    def lr(self, problem: str, label: str) -> float:
        """The learning rate of a method, by the label of its jobs."""
        given = getattr(self.config, "lr", 0.0)
        return given or rates.chosen(self.name, self.config.steps, problem, label) or self.default_lr

    def learning_rates(self) -> dict[str, dict[str, float]]:
        """The learning rates of all runs, by problem and label."""
        found: dict[str, dict[str, float]] = {}
        for job in self.jobs():
            found.setdefault(job.problem, {})[job.label or job.method] = job.lr
        return found

    def _job(self, problem: str, method: str, seed: int) -> Job:
        source = self._job(problem, STATIC[method], seed) if method in STATIC else None
        return Job(problem, method, seed, self.lr(problem, method), weights_from=source)

    def recorded(self) -> dict[str, Any]:
        """The settings that decide what runs compute, for the study's folder."""
        return recorded(self.config)

    def report(self, metrics: Metrics, figures: Path) -> StudyReport:
        """The report; figures are drawn into the folder `figures`."""
        best, ends = self.derive(metrics.best(self.metric)), self.derive(metrics.late(self.late))
        metrics, others = (best, ends) if self.by_validation else (ends, best)
        findings = self.findings(metrics)
        return StudyReport(
            title=self.title,
            command=self.command(),
            summary=[*self.headline(metrics), headline.verdicts(findings)],
            lead=[self.lead(), *self.caution(), *self.losing(metrics)],
            tables=[*self.tables_of(metrics, others), *claims.tables(findings, self.is_papers)],
            figures=[*self.figures_of(metrics, figures), *self.more_figures(metrics, figures)],
            settings=config_table(self.config),
            data={"claims.json": [finding.as_dict() for finding in findings], "ends.json": self._ends(metrics)},
        )

    def _ends(self, metrics: Metrics) -> dict[str, Any]:
        """`ends`, for a file of JSON."""
        ends = {p: {m: values.tolist() for m, values in found.items()} for p, found in self.ends(metrics).items()}
        return {"quantity": self.ranked.name, "largest": self.ranked.largest, "short": self.is_short, "ends": ends}

    def command(self) -> str:
        """The command that makes this study."""
        preset = getattr(self.config, self.chooser, None)
        base = self.presets.get(preset) if preset else None
        if base is not None:  # so that a preset that is not the default is named, too
            base = replace(base, **{self.chooser: getattr(self.default, self.chooser)})
        return command_line(self.name, self.config, base)

    @property
    def ranked(self) -> Quantity:
        """The quantity of `ends`."""
        return self.metric

    def ends(self, metrics: Metrics) -> dict[str, dict[str, claims.Array]]:
        """By problem and method, [seeds]: what the report's first lines compare."""
        run = [problem for problem in self.problems if metrics.methods(problem)]
        return {p: {m: metrics.final(p, m, self.metric.name) for m in metrics.methods(p)} for p in run}

    def headline(self, metrics: Metrics) -> list[str]:
        """What was compared, and which method ends best, for the first lines of the report."""
        ends = self.ends(metrics)
        return [
            headline.compared(ends, self.config.steps, self.is_short),
            " ".join(headline.best(problem, found, self.ranked) for problem, found in ends.items()),
        ]

    def findings(self, metrics: Metrics) -> list[Finding]:
        """The verdicts on the claims about methods that were run."""
        return claims.examine(self.asked(), metrics, self.problems, self.is_short)

    @property
    def is_short(self) -> bool:
        """Whether the runs are shorter than they are by default, so that no verdict follows."""
        preset = self.presets.get(getattr(self.config, self.chooser, ""))
        return self.config.steps < (preset or self.default).steps

    def caution(self) -> list[str]:
        """What a short run cannot show, if this is one."""
        if not self.is_short:
            return []
        steps = self.config.steps
        return [
            f"These runs are shorter than the study's own: {steps:,} steps show a beginning, and no verdict follows."
        ]

    def losing(self, metrics: Metrics) -> list[str]:
        """Where the updates end behind other methods, in sentences."""
        return headline.losing(self.ends(metrics), self.ranked)

    def tables_of(self, metrics: Metrics, others: Metrics) -> list[Table]:
        """The results, those at the end where they are by validation or the other way around, and the weights."""
        shown = {problem: self.shown(problem) for problem in self.problems}
        used = self.learning_rates()
        titles = ("Where each method ends", "The best step by validation")
        first, second = reversed(titles) if self.by_validation else titles
        results = summary.ends(first, metrics, shown, used)
        beside = [replace(table, terminal=None) for table in summary.ends(second, others, shown, used)]
        weights = [
            summary.weights(others if self.by_validation else metrics, problem, self.tasks(problem))
            for problem in self.problems
        ]
        return [*results, *beside, *self.more_tables(metrics), *weights]

    def figures_of(self, metrics: Metrics, folder: Path) -> list[Figure]:
        """The shown quantities over time and at the end, and the weights over time."""
        shown = {problem: self.shown(problem) for problem in self.problems}
        late = 0.0 if self.by_validation else self.late
        return summary.figures(metrics, shown, {p: self.tasks(p) for p in self.problems}, folder, late)
