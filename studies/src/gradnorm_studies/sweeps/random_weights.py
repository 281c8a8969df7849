"""The paper's grid search (§5.3), on any study: random static weights against GradNorm's one run.

Does any beat GradNorm, and does performance fall with the distance from GradNorm's time-averaged weights (fig. 4)? Both
questions and their thresholds were written before the first result was seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradnorm_studies.analysis.claims import Claim, Evidence, spread
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import Figure, Table
from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.engine.settings import RECORD_EVERY, STEPS, setting
from gradnorm_studies.sweeps.registry import BASES, Array, Sweep, SweepConfig

CORRELATED = -0.5
"""Performance counts as falling with distance where their Pearson correlation is below this."""


@dataclass(frozen=True)
class GridConfig(SweepConfig):
    weightings: int = setting(
        100, "Number of random weightings, drawn uniformly and rescaled to sum T.", "The paper's, §5.3.", least=2
    )
    seeds: int = setting(
        1, "Number of seeds; each trains all weightings.", "One, as in the paper, is enough to show the trend.", least=1
    )
    steps: int = setting(2500, STEPS, "The study's own number.", least=1)
    record_every: int = setting(250, RECORD_EVERY, "A tenth of the run: only the ends are compared.", least=1)


def _preset(name: str) -> GridConfig:
    steps = BASES[name]().config.steps
    return GridConfig(steps=steps, record_every=max(1, steps // 10), on=name)


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


class Grid(Sweep[GridConfig]):
    """The base's GradNorm, equal and static runs, and one per random weighting."""

    name = "grid"
    summary = "The paper's grid search (§5.3), on any study: random static weights against GradNorm."
    default = GridConfig()
    presets: ClassVar[Mapping[str, Any]] = {name: _preset(name) for name in BASES}
    methods = "gradnorm,equal,static"

    def __init__(self, config: GridConfig | None = None) -> None:
        super().__init__(config)
        self.title = f"Random static weights, on {self.config.on}"

    def asked(self) -> list[Claim]:
        falling = f"Performance falls with the distance from GradNorm's weights (correlation below {CORRELATED:g})"
        return [
            Claim("None of the random static weightings beats GradNorm", "§5.3, fig. 4", self._none_beats),
            Claim(falling, "§5.3, fig. 4", self._falls),
        ]

    def jobs(self) -> list[Job]:
        known = [job for job in self.base.jobs() if not job.label]
        return known + [weighted for job in known if job.method == "static" for weighted in self._weighted(job)]

    def _weighted(self, static: Job) -> list[Job]:
        """The static run, with each random weighting in place of GradNorm's average."""
        job = replace(static, weights_from=None)
        drawn = enumerate(self.weights(static.problem).tolist())
        return [replace(job, label=_label(place), weights=tuple(weights)) for place, weights in drawn]

    def weights(self, problem: str) -> Array:
        """[weightings, T], the random weightings, the same for every seed."""
        n_tasks = len(self.tasks(problem))
        uniform = np.random.default_rng(0).uniform(size=(self.config.weightings, n_tasks))
        return n_tasks * uniform / uniform.sum(axis=1, keepdims=True)

    def lead(self) -> str:
        better = "higher" if self.metric.largest else "lower"
        return (
            f"The study {self.base.name} with {self.config.weightings} fixed weightings, drawn uniformly and rescaled "
            f"to sum T, and with GradNorm, at the learning rates (random weights: at that of "
            f"GradNorm's averages, fixed) and for the steps of that study ({self.config.steps:,}); all networks with a "
            f"seed start from the same initial values and see the same batches. Gains are in {self.metric.name} "
            f"({better} is better), relative to GradNorm's run; distances are from its time-averaged weights."
        )

    def cloud(self, metrics: Metrics, problem: str) -> Cloud:
        """The weightings of a problem against GradNorm's run."""
        gradnorm = metrics.final(problem, "gradnorm", self.metric.name)

        def gained(label: str) -> Array:
            return self.metric.gain(metrics.final(problem, label, self.metric.name), gradnorm)

        found = [metrics.final(problem, "static", f"weight/{task}") for task in self.tasks(problem)]
        averages = np.stack(found, axis=1)
        distances = np.linalg.norm(self.weights(problem)[:, None] - averages, axis=2)
        gains = np.stack([gained(_label(place)) for place in range(self.config.weightings)])
        others = {method: gained(method) for method in ("equal", "static")}
        return Cloud(distances, gains, np.linalg.norm(1 - averages, axis=1), others)

    def _none_beats(self, metrics: Metrics, problem: str) -> Evidence:
        cloud = self.cloud(metrics, problem)
        beating = ", ".join(map(str, cloud.beating))
        return Evidence(-cloud.gains.max(axis=0), f"of {len(cloud.gains)} weightings, {beating} end above GradNorm")

    def _falls(self, metrics: Metrics, problem: str) -> Evidence:
        found = self.cloud(metrics, problem).correlations
        return Evidence(CORRELATED - found, f"correlation {', '.join(f'{r:.2f}' for r in found)}")

    def tables_of(self, metrics: Metrics, others: Metrics) -> list[Table]:
        rows = []
        for problem in self.problems:
            cloud = self.cloud(metrics, problem)
            quantiles = [spread(np.quantile(cloud.gains, q, axis=0)) for q in (1.0, 0.5, 0.0)]
            fixed = [spread(cloud.others[method]) for method in ("equal", "static")]
            beating = ", ".join(map(str, cloud.beating))
            correlation = ", ".join(f"{r:.2f}" for r in cloud.correlations)
            end = spread(metrics.final(problem, "gradnorm", self.metric.name))
            rows.append((problem, end, *quantiles, *fixed, f"{beating} of {len(cloud.gains)}", correlation))
        header = (
            "on", f"GradNorm: {self.metric.name}", "gain %: best", "median", "worst", "equal weights",
            "GradNorm's, static", "above GradNorm", "correlation of gain and distance",
        )  # fmt: skip
        note = (
            "Gains over GradNorm; below 0, GradNorm is better. The best weighting is picked by the test metric itself, "
            "so it has the advantage. static: GradNorm's time-averaged weights, fixed, at distance 0."
        )
        shown = (header[0], *header[2:5], header[7])
        return [Table("Random weightings against GradNorm", header, rows, note, terminal=shown)]

    def figures_of(self, metrics: Metrics, folder: Path) -> list[Figure]:
        from gradnorm_studies.analysis import figures

        panels = []
        for problem in self.problems:
            cloud = self.cloud(metrics, problem)
            seeds = enumerate(zip(cloud.distances.T, cloud.gains.T, strict=True))
            points = {f"weightings, seed {seed}": pair for seed, pair in seeds}
            points["equal"] = (cloud.equal_distances, cloud.others["equal"])
            points["static"] = (np.zeros_like(cloud.equal_distances), cloud.others["static"])
            found = ", ".join(f"{r:.2f}" for r in cloud.correlations)
            title = f"{problem}: correlation {found}"
            panels.append(
                figures.Points(title, points, "L2 distance from GradNorm's weights", "gain over GradNorm (%)")
            )
        caption = (
            "Each point is a network with fixed weights: how far they are from GradNorm's time-averaged ones, and how "
            "much better than GradNorm it ends. Below the line, GradNorm is better."
        )
        return [Figure(figures.scatter(folder / "grid.svg", panels), caption)]


def _label(place: int) -> str:
    """Label of the job that trains the weighting at this index."""
    return f"weights {place}"
