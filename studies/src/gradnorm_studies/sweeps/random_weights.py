"""The paper's grid search (§5.3), on any study: random static weights against GradNorm's one run.

Does any beat GradNorm, and does performance fall with the distance from GradNorm's time-averaged weights (fig. 4)? Both
questions and their thresholds were written before the first result was seen.
"""

from __future__ import annotations

from collections.abc import Callable
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

CORRELATED = -0.5
"""Performance counts as falling with distance where their Pearson correlation is below this."""


@dataclass(frozen=True)
class GridConfig:
    """The sweep's settings; all others are the base study's."""

    on: str = setting("toy", "The study whose problem, network and learning rates are taken.", choices=tuple(BASES))
    weightings: int = setting(100, "The paper's, §5.3; drawn uniformly, rescaled to sum T.", least=2)
    seeds: int = setting(1, "Each trains all weightings; one, as in the paper, is enough to show the trend.", least=1)
    steps: int = setting(2500, "Default: the study's own number.", least=1)
    record_every: int = setting(250, "Only the ends are compared; default: a tenth of the run.", least=1)


def _preset(name: str) -> GridConfig:
    steps = BASES[name]().config.steps
    return GridConfig(name, steps=steps, record_every=max(1, steps // 10))


@dataclass(frozen=True)
class Grid:
    config: GridConfig = field(default_factory=GridConfig)
    name: ClassVar[str] = "grid"
    config_class: ClassVar[type[GridConfig]] = GridConfig
    summary: ClassVar[str] = "The paper's grid search (§5.3), on any study: random static weights against GradNorm."
    chooser: ClassVar[str] = "on"
    presets: ClassVar[dict[str, GridConfig]] = {name: _preset(name) for name in BASES}

    def jobs(self) -> list[Job]:
        """The base's GradNorm, equal and static runs, and one per random weighting."""
        own = [job for job in self._base().jobs() if not job.label]
        known = [job for method in ("gradnorm", "equal", "static") for job in own if job.method == method]
        return known + [weighted for job in known if job.method == "static" for weighted in self._weighted(job)]

    def _weighted(self, static: Job) -> list[Job]:
        """The static run, with each random weighting in place of GradNorm's average."""
        job = replace(static, weights_from=None)
        drawn = enumerate(self.weights(static.problem).tolist())
        return [replace(job, label=_label(place), weights=tuple(weights)) for place, weights in drawn]

    def weights(self, problem: str) -> Array:
        """[weightings, T], the random weightings, the same for every seed."""
        n_tasks = len(self._base().task_names(problem))
        uniform = np.random.default_rng(0).uniform(size=(self.config.weightings, n_tasks))
        return n_tasks * uniform / uniform.sum(axis=1, keepdims=True)

    @property
    def gpus(self) -> int:
        return getattr(self._base(), "gpus", 0)

    def experiment(self, job: Job) -> Experiment:
        return self._base().experiment(job)

    def train(self, job: Job, folder: Path, stop: Callable[[int], bool]) -> bool:
        return carry_out(self._base(), job, folder, stop)

    def report(self, metrics: Metrics, figures: Path) -> StudyReport:
        study = self._base()
        problems = tuple(dict.fromkeys(job.problem for job in self.jobs()))
        clouds = {problem: self._cloud(metrics, problem) for problem in problems}
        return StudyReport(
            title=f"Random static weights, on {self.config.on}",
            command=command_line(self.name, self.config, replace(self.presets[self.config.on], on="")),
            lead=[_lead(study, self.config)],
            tables=[_ends(study, metrics, clouds), claims.table(_claims(clouds), metrics, problems)],
            figures=_figures(clouds, figures),
            settings=config_table(self.config),
        )

    def _cloud(self, metrics: Metrics, problem: str) -> Cloud:
        study, late = self._base(), metrics.late(getattr(self._base(), "late", 0.0))
        gradnorm = late.final(problem, "gradnorm", study.metric)
        gains = [
            gain(study, late.final(problem, _label(place), study.metric), gradnorm)
            for place in range(self.config.weightings)
        ]
        tasks = study.task_names(problem)
        found = np.stack([late.final(problem, "static", f"weight/{task}") for task in tasks], axis=1)
        distances = np.linalg.norm(self.weights(problem)[:, None] - found, axis=2)
        others = {m: gain(study, late.final(problem, m, study.metric), gradnorm) for m in ("equal", "static")}
        return Cloud(distances, np.stack(gains), np.linalg.norm(1 - found, axis=1), others)

    def _base(self) -> Any:
        return base(self.config.on, self.config)


def _label(place: int) -> str:
    """Label of the job that trains the weighting at this index."""
    return f"weights {place}"


@dataclass(frozen=True)
class Cloud:
    """The weightings of a problem against GradNorm's run with the same seed."""

    distances: Array
    """[weightings, seeds], L2 distances from GradNorm's time-averaged weights."""
    gains: Array
    """[weightings, seeds], gains over GradNorm in percent; negative where GradNorm is better."""
    equal_distances: Array
    """[seeds], of equal weights."""
    others: dict[str, Array]
    """[seeds] each, the gains of equal weights and of GradNorm's time-averaged weights."""

    @property
    def correlations(self) -> Array:
        """[seeds], between gain and distance."""
        return np.array([np.corrcoef(d, g)[0, 1] for d, g in zip(self.distances.T, self.gains.T, strict=True)])

    @property
    def beating(self) -> NDArray[np.int_]:
        """[seeds], the number of weightings that end above GradNorm."""
        return (self.gains > 0).sum(axis=0)


def _lead(study: Any, config: GridConfig) -> str:
    better = "higher" if study.largest else "lower"
    return (
        f"The study {study.name} with {config.weightings} fixed weightings, drawn uniformly and rescaled to sum T, and "
        f"with GradNorm, at the learning rates and for the steps of that study ({config.steps:,}); all networks with a "
        f"seed start from the same initial values and see the same batches. Gains are in {study.metric} ({better} is "
        f"better), relative to GradNorm's run; distances are from its time-averaged weights."
    )


def _claims(clouds: dict[str, Cloud]) -> tuple[Claim, ...]:
    def none_beats(_: Metrics, problem: str) -> Evidence:
        beating, of = clouds[problem].beating, len(clouds[problem].gains)
        return Evidence(beating == 0, f"of {of} weightings, {', '.join(map(str, beating))} end above GradNorm")

    def falls(_: Metrics, problem: str) -> Evidence:
        found = clouds[problem].correlations
        return Evidence(found < CORRELATED, f"correlation {', '.join(f'{r:.2f}' for r in found)}")

    return (
        Claim("None of the random static weightings beats GradNorm", "§5.3, fig. 4", none_beats),
        Claim(
            f"Performance falls with the distance from GradNorm's weights (correlation below {CORRELATED:g})",
            "§5.3, fig. 4",
            falls,
        ),
    )


def _ends(study: Any, metrics: Metrics, clouds: dict[str, Cloud]) -> Table:
    late = metrics.late(getattr(study, "late", 0.0))
    rows = []
    for problem, cloud in clouds.items():
        quantiles = [spread(np.quantile(cloud.gains, q, axis=0)) for q in (1.0, 0.5, 0.0)]
        others = [spread(cloud.others[method]) for method in ("equal", "static")]
        beating = ", ".join(map(str, cloud.beating))
        correlation = ", ".join(f"{r:.2f}" for r in cloud.correlations)
        end = spread(late.final(problem, "gradnorm", study.metric))
        rows.append((problem, end, *quantiles, *others, f"{beating} of {len(cloud.gains)}", correlation))
    header = (
        "on", f"GradNorm: {study.metric}", "gain %: best", "median", "worst", "equal weights", "GradNorm's, static",
        "above GradNorm", "correlation of gain and distance",
    )  # fmt: skip
    note = (
        "Gains over GradNorm; below 0, GradNorm is better. The best weighting is picked by the test metric itself, so "
        "it has the advantage. static: GradNorm's time-averaged weights, fixed, at distance 0."
    )
    return Table(
        "Random weightings against GradNorm", header, rows, note, terminal=(header[0], *header[2:5], header[7])
    )


def _figures(clouds: dict[str, Cloud], folder: Path) -> list[Figure]:
    from gradnorm_studies.analysis import figures

    panels = []
    for problem, cloud in clouds.items():
        seeds = enumerate(zip(cloud.distances.T, cloud.gains.T, strict=True))
        points = {f"weightings, seed {seed}": pair for seed, pair in seeds}
        points["equal"] = (cloud.equal_distances, cloud.others["equal"])
        points["static"] = (np.zeros_like(cloud.equal_distances), cloud.others["static"])
        found = ", ".join(f"{r:.2f}" for r in cloud.correlations)
        panels.append(figures.Points(f"{problem}: correlation {found}", points, "distance", "gain over GradNorm, %"))
    caption = (
        "Each point is a network with fixed weights: how far they are from GradNorm's time-averaged ones, and how much "
        "better than GradNorm it ends. Below the line, GradNorm is better."
    )
    return [Figure(figures.scatter(folder / "grid.png", panels), caption)]
