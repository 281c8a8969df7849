"""The paper's sweep over α (§5.4), on any study: gain over equal weights, and the weights, for each α.

The claims below and their thresholds were written before the first result was seen. "Almost any" is read as all but one
of the α between 0 and 3 that are tried; "unstable" as weights that do not converge, where those of α = 1.5 do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import Claim, Evidence, spread
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import Figure, StudyReport, Table
from gradnorm_studies.engine.settings import command_line, config_table, setting
from gradnorm_studies.engine.study import Experiment, Job
from gradnorm_studies.engine.training import carry_out
from gradnorm_studies.sweeps.registry import BASES, Array, base, gain

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
INNER = (0.5, 1.0, 1.5, 2.0)
"""Those of 0 < α < 3."""
NEAR = (1.0, 1.5, 2.0)
"""The best α of the paper, 1.5, and its neighbors."""
RESTLESS = 0.1
"""A weight with a larger standard deviation over the last quarter of a run has not converged; the mean weight is 1."""


@dataclass(frozen=True)
class AlphaConfig:
    """The sweep's settings; all others are the base study's."""

    on: str = setting("toy", "The study whose problem, network and learning rates are taken.", choices=tuple(BASES))
    seeds: int = setting(3, "The fewest that show a spread; default: the study's own number.", least=1)
    steps: int = setting(2500, "Default: the study's own number.", least=1)
    record_every: int = setting(25, "Default: the study's own interval.", least=1)


def _preset(name: str) -> AlphaConfig:
    own = BASES[name]().config
    return AlphaConfig(name, own.seeds, own.steps, own.record_every)


@dataclass(frozen=True)
class Alpha:
    config: AlphaConfig = field(default_factory=AlphaConfig)
    name: ClassVar[str] = "alpha"
    config_class: ClassVar[type[AlphaConfig]] = AlphaConfig
    summary: ClassVar[str] = "The paper's sweep over α (§5.4), on any study: gain over equal weights, and weights."
    chooser: ClassVar[str] = "on"
    presets: ClassVar[dict[str, AlphaConfig]] = {name: _preset(name) for name in BASES}

    def jobs(self) -> list[Job]:
        """The base's runs with equal weights, and its GradNorm runs, each at every α."""
        own = [job for job in self._base().jobs() if not job.label]
        sweep = [replace(job, label=_label(a)) for job in own if job.method == "gradnorm" for a in ALPHAS]
        return sweep + [job for job in own if job.method == "equal"]

    @property
    def gpus(self) -> int:
        return getattr(self._base(), "gpus", 0)

    def experiment(self, job: Job) -> Experiment:
        return self._base(job).experiment(job)

    def train(self, job: Job, folder: Path, stop: Callable[[int], bool]) -> bool:
        return carry_out(self._base(job), job, folder, stop)

    def report(self, metrics: Metrics, figures: Path) -> StudyReport:
        study = self._base()
        problems = tuple(dict.fromkeys(job.problem for job in self.jobs()))
        return StudyReport(
            title=f"α, on {self.config.on}",
            command=command_line(self.name, self.config, replace(self.presets[self.config.on], on="")),
            lead=[_lead(study)],
            tables=[_table(study, metrics, problems), claims.table(_claims(study), metrics, problems)],
            figures=_figures(study, metrics, problems, figures),
            settings=config_table(self.config),
        )

    def _base(self, job: Job | None = None) -> Any:
        """The base study, with the job's α if it has one."""
        study = base(self.config.on, self.config)
        if job is None or job.method != "gradnorm":
            return study
        return replace(study, config=replace(study.config, alpha=_alpha(job)))


def _label(alpha: float) -> str:
    return f"α={alpha:g}"


def _alpha(job: Job) -> float:
    return next(alpha for alpha in ALPHAS if _label(alpha) == job.label)


def _lead(study: Any) -> str:
    better = "higher" if study.largest else "lower"
    return (
        f"The study {study.name} with GradNorm at each α and with equal weights, at the learning rates and for the "
        f"steps of that study ({study.config.steps:,}). Gains are in {study.metric} ({better} is better), relative to "
        f"equal weights with the same seed; figures are mean ± standard deviation over {study.config.seeds} seeds."
    )


def _gains(study: Any, metrics: Metrics, problem: str, alphas: Sequence[float]) -> Array:
    """[alphas, seeds], the gain over equal weights in percent."""
    late = metrics.late(getattr(study, "late", 0.0))
    equal = late.final(problem, "equal", study.metric)
    return np.stack([gain(study, late.final(problem, _label(a), study.metric), equal) for a in alphas])


def _claims(study: Any) -> tuple[Claim, ...]:
    def almost_any(metrics: Metrics, problem: str) -> Evidence:
        beating = (_gains(study, metrics, problem, INNER) > 0).sum(axis=0)
        return Evidence(beating >= len(INNER) - 1, f"of {len(INNER)} α, {_each(beating)} beat it")

    def best_near(metrics: Metrics, problem: str) -> Evidence:
        best = np.array(ALPHAS)[_gains(study, metrics, problem, ALPHAS).argmax(axis=0)]
        return Evidence(np.isin(best, NEAR), f"best α {_each(best)}")

    def further_apart(metrics: Metrics, problem: str) -> Evidence:
        apart = np.stack([_apart(metrics, problem, alpha) for alpha in INNER])
        return Evidence(np.all(np.diff(apart, axis=0) > 0, axis=0), "; ".join(map(spread, apart)))

    def unstable(metrics: Metrics, problem: str) -> Evidence:
        calm, wild = (_unrest(metrics, problem, alpha) for alpha in (1.5, 3.0))
        answers = (wild > RESTLESS) & (calm <= RESTLESS)
        return Evidence(answers, f"largest late standard deviation of a weight: {spread(calm)}, {spread(wild)}")

    return (
        Claim("Almost any 0 < α < 3 beats equal weights (all but one of 0.5, 1, 1.5, 2)", "§5.4, fig. 5", almost_any),
        Claim("The best α is near 1.5 (1, 1.5 or 2, of all tried)", "§5.4, fig. 5", best_near),
        Claim("Larger α pulls the weights further apart (at 0.5, 1, 1.5, 2)", "§5.4, fig. 6", further_apart),
        Claim("α ≥ 3 is unstable (at 1.5 the weights converge, at 3 not)", "§5.4", unstable),
    )


def _each(values: NDArray[Any]) -> str:
    """One figure per seed."""
    return ", ".join(f"{value:g}" for value in values)


def _weights(metrics: Metrics, problem: str, alpha: float) -> Array:
    """[tasks, seeds, R], the weights over time."""
    label = _label(alpha)
    tasks = metrics.tasks(problem, label)
    return np.stack([metrics.series(problem, label, f"weight/{task}") for task in tasks])


def _apart(metrics: Metrics, problem: str, alpha: float) -> Array:
    """[seeds], the standard deviation of the weights over tasks, averaged over the run."""
    return _weights(metrics, problem, alpha).std(axis=0).mean(axis=1)


def _unrest(metrics: Metrics, problem: str, alpha: float) -> Array:
    """[seeds], the largest standard deviation of a weight over the last quarter of the run."""
    traces = _weights(metrics, problem, alpha)
    return traces[:, :, -max(2, traces.shape[2] // 4) :].std(axis=2).max(axis=0)


def _table(study: Any, metrics: Metrics, problems: tuple[str, ...]) -> Table:
    ends = metrics.late(getattr(study, "late", 0.0))
    rows = []
    for problem in problems:
        rows.append((problem, "equal weights", spread(ends.final(problem, "equal", study.metric)), "", "", "", ""))
        for alpha, gained in zip(ALPHAS, _gains(study, metrics, problem, ALPHAS), strict=True):
            label, weights = _label(alpha), _weights(metrics, problem, alpha)
            apart, unrest = _apart(metrics, problem, alpha), _unrest(metrics, problem, alpha)
            smallest = spread(weights.min(axis=(0, 2)))
            final = spread(ends.final(problem, label, study.metric))
            rows.append((problem, label, final, spread(gained), smallest, spread(apart), spread(unrest)))
    header = ("on", "α", study.metric, "gain %", "smallest weight", "weights apart", "weights' late unrest")
    note = (
        "weights apart: their standard deviation over tasks, on average over the run; late unrest: the largest "
        "standard deviation of a weight over the last quarter of the run."
    )
    return Table("What each α gains over equal weights", header, rows, note, terminal=("on", "α", "gain %"))


def _figures(study: Any, metrics: Metrics, problems: tuple[str, ...], folder: Path) -> list[Figure]:
    from gradnorm_studies.analysis import figures

    gained, weights = [], []
    for problem in problems:
        gains = _gains(study, metrics, problem, ALPHAS).T
        curves = {"gradnorm": gains, "equal": np.zeros_like(gains)}
        gained.append(figures.Curves(problem, np.array(ALPHAS), curves, "gain over equal weights, %", xlabel="α"))
        weights += _weight_panels(metrics, problem)
    return [
        Figure(
            figures.over_time(folder / "gain.png", gained), "Gain over equal weights: means over seeds, their range."
        ),
        Figure(figures.over_time(folder / "weights.png", weights, columns=3), "The weights over time, at each α."),
    ]


def _weight_panels(metrics: Metrics, problem: str) -> list[Any]:
    """One panel per α, all on one scale."""
    from gradnorm_studies.analysis import figures

    traces = {alpha: _weights(metrics, problem, alpha) for alpha in ALPHAS}
    lowest, highest = (float(f([f(values) for values in traces.values()])) for f in (np.min, np.max))
    tasks = metrics.tasks(problem, _label(ALPHAS[0]))
    order = np.argsort(-traces[ALPHAS[0]][:, :, -1].mean(axis=1))
    colors = figures.ramp([tasks[i] for i in order])
    panels = []
    for alpha, values in traces.items():
        steps = metrics.steps(problem, _label(alpha), f"weight/{tasks[0]}")
        curves = {tasks[i]: values[i] for i in order}
        limits = (lowest / 1.15, highest * 1.15)
        panels.append(figures.Curves(f"{problem}, {_label(alpha)}", steps, curves, "weight", True, colors, ylim=limits))
    return panels
