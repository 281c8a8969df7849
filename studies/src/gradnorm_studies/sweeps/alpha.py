"""The paper's sweep over α (§5.4), on any study and with both updates: gain over equal weights, and the weights.

The claims below and their thresholds were written before the first result was seen. "Almost any" is read as all but one
of the α between 0 and 3 that are tried; "unstable" as weights that do not converge, where those of α = 1.5 do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradnorm_studies.analysis.claims import FEWEST_RECORDS, RULES, Claim, Evidence, spread, unrest
from gradnorm_studies.analysis.metrics import VALIDATION, Metrics
from gradnorm_studies.analysis.report import Figure, Table
from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.engine.settings import RECORD_EVERY, STEPS, setting
from gradnorm_studies.sweeps.registry import BASES, Array, Sweep, SweepConfig

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
INNER = (0.5, 1.0, 1.5, 2.0)
"""Those of 0 < α < 3."""
NEAR = (1.0, 1.5, 2.0)
"""The best α of the paper, 1.5, and its neighbors."""
RESTLESS = 0.1
"""A weight with a larger standard deviation late in a run has not converged; the mean weight is 1."""


@dataclass(frozen=True)
class AlphaConfig(SweepConfig):
    seeds: int = setting(3, "Number of seeds.", "The study's own number.", least=1)
    steps: int = setting(2500, STEPS, "The study's own number.", least=1)
    record_every: int = setting(25, RECORD_EVERY, "The study's own interval.", least=1)


def _preset(name: str) -> AlphaConfig:
    own = BASES[name]().config
    return AlphaConfig(own.seeds, own.steps, own.record_every, name)


class Alpha(Sweep[AlphaConfig]):
    """The base's runs with equal weights, and those of both updates, each at every α."""

    name = "alpha"
    summary = "The paper's sweep over α (§5.4), on any study: gain over equal weights, and weights."
    default = AlphaConfig()
    presets: ClassVar[Mapping[str, Any]] = {name: _preset(name) for name in BASES}
    methods = "gradnorm,closed-form,equal"

    def __init__(self, config: AlphaConfig | None = None) -> None:
        super().__init__(config)
        self.title = f"α, on {self.config.on}"

    def jobs(self) -> list[Job]:
        own = self.base.jobs()
        moved = [job for job in own if job.method in RULES.values()]
        sweep = [replace(job, label=_label(job.method, a), alpha=a) for job in moved for a in ALPHAS]
        return sweep + [job for job in own if job.method == "equal"]

    def lead(self) -> str:
        better = "higher" if self.metric.largest else "lower"
        return (
            f"The study {self.base.name} with both updates at each α and with equal weights, at the learning rates and "
            f"for the steps of that study ({self.config.steps:,}). Gains are in {self.metric.name} ({better} is "
            f"better), relative to equal weights with the same seed; figures are mean ± standard deviation over "
            f"{self.config.seeds} seeds."
        )

    def gains(self, metrics: Metrics, problem: str, method: str, alphas: Sequence[float] = ALPHAS) -> Array:
        """[alphas, seeds], the gain over equal weights in percent."""
        equal = metrics.final(problem, "equal", self.metric.name)
        ends = [metrics.final(problem, _label(method, alpha), self.metric.name) for alpha in alphas]
        return np.stack([self.metric.gain(end, equal) for end in ends])

    def asked(self) -> list[Claim]:
        return [claim for rule in RULES.items() for claim in self._claims(*rule)]

    def _claims(self, rule: str, method: str) -> list[Claim]:
        def almost_any(metrics: Metrics, problem: str) -> Evidence:
            gains = np.sort(_ranked(self.gains(metrics, problem, method, INNER)), axis=0)
            beating = (gains > 0).sum(axis=0)
            return Evidence(gains[1], f"of {len(INNER)} α, {_each(beating)} beat it")

        def best_near(metrics: Metrics, problem: str) -> Evidence:
            gains = _ranked(self.gains(metrics, problem, method))
            near = np.isin(ALPHAS, NEAR)
            best = np.array(ALPHAS)[gains.argmax(axis=0)]
            return Evidence(gains[near].max(axis=0) - gains[~near].max(axis=0), f"best α {_each(best)}")

        def further_apart(metrics: Metrics, problem: str) -> Evidence:
            apart = np.stack([_apart(metrics, problem, method, alpha) for alpha in INNER])
            return Evidence(np.diff(apart, axis=0).min(axis=0), "; ".join(map(spread, apart)))

        def unstable(metrics: Metrics, problem: str) -> Evidence:
            calm, wild = (unrest(_weights(metrics, problem, method, alpha)) for alpha in (1.5, 3.0))
            found = f"largest late standard deviation of a weight: {spread(calm)}, {spread(wild)}"
            return Evidence(np.minimum(wild - RESTLESS, RESTLESS - calm), found)

        asked = {
            "almost any 0 < α < 3 beats equal weights (all but one of 0.5, 1, 1.5, 2)": ("§5.4, fig. 5", almost_any),
            "the best α is near 1.5 (1, 1.5 or 2, of all tried)": ("§5.4, fig. 5", best_near),
            "larger α pulls the weights further apart (at 0.5, 1, 1.5, 2)": ("§5.4, fig. 6", further_apart),
            "α ≥ 3 is unstable (at 1.5 the weights converge, at 3 not)": ("§5.4", unstable),
        }
        return [Claim(f"{rule}: {text}", source, look) for text, (source, look) in asked.items()]

    def tables_of(self, metrics: Metrics, others: Metrics) -> list[Table]:
        return [self._table(metrics, problem) for problem in self.problems]

    def _table(self, metrics: Metrics, problem: str) -> Table:
        own = self.metric.name
        seen = VALIDATION + own

        def ends(label: str) -> list[str]:
            return [spread(metrics.final(problem, label, name)) for name in (seen, own)]

        rows: list[tuple[str, ...]] = [("equal weights", *ends("equal"), "", "", "", "")]
        for method in RULES.values():
            for alpha, gained in zip(ALPHAS, self.gains(metrics, problem, method), strict=True):
                label, weights = _label(method, alpha), _weights(metrics, problem, method, alpha)
                shown = weights.min(axis=(0, 2)), _apart(metrics, problem, method, alpha), unrest(weights)
                rows.append((label, *ends(label), *map(spread, (gained, *shown))))
        header = ("α", seen, own, "gain %", "smallest weight", "weights apart", "weights' late unrest")
        note = (
            f"{seen} is that on validation data, by which an α can be chosen; weights apart: their standard deviation "
            "over tasks, on average over the run; late unrest: the largest standard deviation of a weight over the "
            f"last quarter of the records, at least {FEWEST_RECORDS} of them."
        )
        title = f"What each α gains over equal weights: {problem}"
        return Table(title, header, rows, note, terminal=("α", "gain %"))

    def figures_of(self, metrics: Metrics, folder: Path) -> list[Figure]:
        from gradnorm_studies.analysis import figures

        gained, weights = [], []
        for problem in self.problems:
            curves = {method: self.gains(metrics, problem, method).T for method in RULES.values()}
            curves["equal"] = np.zeros_like(curves["gradnorm"])
            gained.append(figures.Curves(problem, np.array(ALPHAS), curves, "gain over equal weights (%)", xlabel="α"))
            for method in RULES.values():
                weights += _weight_panels(metrics, problem, method)
        caption = "Gain over equal weights: means over seeds, their range."
        return [
            Figure(figures.over_time(folder / "gain.svg", gained), caption),
            Figure(figures.over_time(folder / "weights.svg", weights, columns=3), "The weights over time, at each α."),
        ]


def _label(method: str, alpha: float) -> str:
    return f"{method} α={alpha:g}"


def _each(values: NDArray[Any]) -> str:
    """One figure per seed."""
    return ", ".join(f"{value:g}" for value in values)


def _ranked(gains: Array) -> Array:
    """Gains, with those of runs that diverged below all others."""
    return np.where(np.isnan(gains), -np.inf, gains)


def _weights(metrics: Metrics, problem: str, method: str, alpha: float) -> Array:
    """[tasks, seeds, R], the weights over time."""
    label = _label(method, alpha)
    tasks = metrics.tasks(problem, label)
    return np.stack([metrics.series(problem, label, f"weight/{task}") for task in tasks])


def _apart(metrics: Metrics, problem: str, method: str, alpha: float) -> Array:
    """[seeds], the standard deviation of the weights over tasks, averaged over the run."""
    return _weights(metrics, problem, method, alpha).std(axis=0).mean(axis=1)


def _weight_panels(metrics: Metrics, problem: str, method: str) -> list[Any]:
    """One panel per α, all on one scale."""
    from gradnorm_studies.analysis import figures

    traces = {alpha: _weights(metrics, problem, method, alpha) for alpha in ALPHAS}
    lowest, highest = (float(f([f(values) for values in traces.values()])) for f in (np.min, np.max))
    tasks = metrics.tasks(problem, _label(method, ALPHAS[0]))
    order = np.argsort(-traces[ALPHAS[0]][:, :, -1].mean(axis=1))
    colors = figures.ramp([tasks[i] for i in order])
    panels = []
    for alpha, values in traces.items():
        label = _label(method, alpha)
        steps = metrics.steps(problem, label, f"weight/{tasks[0]}")
        curves = {tasks[i]: values[i] for i in order}
        limits = (lowest / 1.15, highest * 1.15)
        panels.append(
            figures.Curves(f"{problem}, {label}", steps, curves, figures.WEIGHT, True, colors, figures.STEP, limits)
        )
    return panels
