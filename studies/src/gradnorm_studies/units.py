"""Who needs no tuning: the unit of one loss is changed by 10^k, k = −6 … 6, and every method trains as before.

The data are real: scikit-learn's scans of digits (which digit, and how much ink) and QM9 (two of its properties). Each
method has the learning rate that is best for it at k = 0, and keeps it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies import molecules
from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import RULES, Array, Claim, Evidence, Finding, Look, spread
from gradnorm_studies.analysis.metrics import Metrics, Quantity
from gradnorm_studies.analysis.report import Figure, Table
from gradnorm_studies.engine.experiment import Experiment, Job, Split, step_generator
from gradnorm_studies.engine.settings import ALPHA, BATCH, METHODS_SUBSET, RECORD_EVERY, STEPS, TrainingConfig, setting
from gradnorm_studies.engine.study import Study
from gradnorm_studies.networks import HardSharing, explained, split_rows, standardize

SCORE = Quantity("score %", largest=True)
"""The mean over tasks of accuracy or R², in percent: what is reported in each task's own terms, without a unit."""
WORST = replace(SCORE, name="score at its worst k %")
OTHERS = {
    "Equal weighting": "equal",
    "Dividing by the first loss": "divided",
    "Uncertainty weighting": "uncertainty",
    "The geometric mean": "geometric",
}
TOLERANCE = 5.0
"""A method needs no tuning if its score, at every k, is within so many points of the best method's at k = 0."""


@dataclass(frozen=True)
class UnitsConfig(TrainingConfig):
    """Settings, chosen before any result was seen."""

    seeds: int = setting(
        5, "Number of seeds; each sets the split, the network and the batches.", "A run takes a second or two.", least=1
    )
    steps: int = setting(1000, STEPS, "All of a method's runs in about a minute on two cores.", least=1)
    batch: int = setting(64, BATCH, "A common size.", least=1)
    record_every: int = setting(250, RECORD_EVERY, "Only the ends are compared.", least=1)
    decades: int = setting(
        6,
        "Decades by which the unit changes either way, from 10^−decades to 10^decades; 0 for the search.",
        "Wide enough for any common change of unit.",
        least=0,
    )
    alpha: float = setting(0.12, ALPHA, "The library's default.", least=0)
    methods: str = setting(
        "gradnorm,closed-form,equal,divided,uncertainty,geometric,dwa,random",
        METHODS_SUBSET,
        "Static weights and single networks say nothing about units.",
    )


class Digits:
    """Scans of 8×8 pixels: cross entropy of the digit, squared error of the ink, standardized."""

    tasks = ("digit", "ink")

    def __init__(self, seed: int) -> None:
        scans, digits = _scans()
        ink = scans.sum(1, keepdim=True)
        self.rows = split_rows(len(scans), seed)
        self.x, self._digit, self._ink = scans / 16, digits, standardize(ink, self.rows.train)
        self.sizes, self.outputs = [64, 64, 64], [10, 1]

    def losses(self, output: Sequence[Tensor], rows: Tensor) -> Tensor:
        """[2], at scale 1."""
        return torch.stack([F.cross_entropy(output[0], self._digit[rows]), F.mse_loss(output[1], self._ink[rows])])

    def scores(self, output: Sequence[Tensor], rows: Tensor) -> list[float]:
        """Accuracy and R² in percent."""
        accuracy = 100 * (output[0].argmax(1) == self._digit[rows]).double().mean().item()
        return [accuracy, explained(output[1], self._ink[rows])]


@functools.cache
def _scans() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    scans, digits = load_digits(return_X_y=True)
    return torch.tensor(scans, dtype=torch.float32), torch.tensor(digits)


class Properties:
    """QM9: squared errors of all eleven properties, standardized; the last is the heat capacity."""

    tasks = molecules.TASKS

    def __init__(self, seed: int) -> None:
        self.x, self._y, self.rows = molecules.prepared(seed)
        self.sizes, self.outputs = [self.x.shape[1], 64, 64], [1] * len(self.tasks)

    def losses(self, output: Sequence[Tensor], rows: Tensor) -> Tensor:
        """[11], at scale 1."""
        return (torch.cat(tuple(output), 1) - self._y[rows]).square().mean(0)

    def scores(self, output: Sequence[Tensor], rows: Tensor) -> list[float]:
        """R² of each property in percent."""
        return [explained(out.squeeze(1), self._y[rows, i]) for i, out in enumerate(output)]


DATA = {"digits": Digits, "QM9": Properties}


class Scaled(Experiment):
    """One run: the last task's loss is multiplied by 10^k."""

    def __init__(self, config: UnitsConfig, job: Job) -> None:
        name, k = parse(job.problem)
        data = DATA[name](job.seed)
        self._data, self._rows, self._batch, self._seed = data, data.rows, config.batch, job.seed
        self.tasks = data.tasks
        self._scale = torch.ones(len(self.tasks))
        self._scale[-1] = 10.0**k
        self.model = network = HardSharing(data.sizes, data.outputs)
        self.equip(job, config, network.last_shared, epoch=len(data.rows.train) // config.batch)

    def losses(self, step: int) -> Tensor:
        """[T], the last one in its other unit."""
        train = self._rows.train
        rows = train[torch.randint(len(train), (self._batch,), generator=step_generator(self._seed, step))]
        return self._scale * self._data.losses(self.model(self._data.x[rows]), rows)

    def evaluate(self, split: Split) -> dict[str, float]:
        """Each task's score and their mean."""
        rows = getattr(self._rows, split)
        scores = self._data.scores(self.model(self._data.x[rows]), rows)
        return {
            SCORE.name: sum(scores) / len(scores),
            **{f"score/{t}": s for t, s in zip(self.tasks, scores, strict=True)},
        }


def problem_at(data: str, k: int) -> str:
    """Name of the problem whose unit is changed by 10^k."""
    return f"{data} ×1e{k:+d}"


def parse(problem: str) -> tuple[str, int]:
    """The data set and k of a problem."""
    data, k = problem.split(" ×1e")
    return data, int(k)


class Units(Study[UnitsConfig]):
    """Every method at every k, on both data sets."""

    name = "units"
    title = "The unit of a loss"
    summary = "Real data, one loss multiplied by 10^k: which methods need no tuning?"
    default = UnitsConfig()
    extra = molecules.EXTRA
    metric = SCORE
    is_papers = False

    def __init__(self, config: UnitsConfig | None = None) -> None:
        super().__init__(config)
        self.exponents = range(-self.config.decades, self.config.decades + 1)
        self.problems = tuple(problem_at(data, k) for data in DATA for k in self.exponents)

    def tasks(self, problem: str) -> tuple[str, ...]:
        return DATA[parse(problem)[0]].tasks

    def lr(self, problem: str, label: str) -> float:
        """The rate at k = 0."""
        return super().lr(problem_at(parse(problem)[0], 0), label)

    def experiment(self, job: Job) -> Scaled:
        return Scaled(self.config, job)

    def lead(self) -> str:
        return (
            f"One loss is multiplied by 10^k, as if its target had another unit: the ink of scikit-learn's digits, "
            f"beside their class; the heat capacity of QM9's molecules, beside ten other properties. The score is the "
            f"mean over tasks of accuracy or R², which know no unit. Every method has the learning rate that is best "
            f"for it at k = 0 and keeps it; {self.config.steps:,} steps of {self.config.batch}, "
            f"{self.config.seeds} seeds."
        )

    def asked(self) -> list[Claim]:
        return [self._claim(*rule) for rule in (*RULES.items(), *OTHERS.items())]

    def _claim(self, rule: str, method: str) -> Claim:
        return Claim(
            f"{rule} needs no tuning: at every k within {TOLERANCE:g} points of the best", "ours", self._flat(method)
        )

    def _flat(self, method: str) -> Look:
        def look(metrics: Metrics, problem: str) -> Evidence:
            data, _ = parse(problem)
            scores = [metrics.final(problem, other, SCORE.name) for other in metrics.methods(problem)]
            best = max(scores, key=lambda found: np.nan_to_num(found.mean(), nan=-np.inf))
            worst = self._at_every_k(metrics, data, method).min(axis=0)
            return Evidence(
                worst - (best - TOLERANCE), f"worst k: {spread(worst)}, best method at k = 0: {spread(best)}"
            )

        return look

    @property
    def ranked(self) -> Quantity:
        return WORST

    def ends(self, metrics: Metrics) -> dict[str, dict[str, Array]]:
        """Each method at its worst k."""
        methods = {data: metrics.methods(problem_at(data, 0)) for data in DATA}
        return {data: {m: self._at_every_k(metrics, data, m).min(axis=0) for m in methods[data]} for data in DATA}

    def _at_every_k(self, metrics: Metrics, data: str, method: str) -> Array:
        """[k, seeds], the scores at the end."""
        return np.stack([metrics.final(problem_at(data, k), method, SCORE.name) for k in self.exponents])

    def findings(self, metrics: Metrics) -> list[Finding]:
        """One per data set, not per k."""
        found = claims.examine(self.asked(), metrics, [problem_at(data, 0) for data in DATA], self.is_short)
        return [replace(finding, problem=parse(finding.problem)[0]) for finding in found]

    def tables_of(self, metrics: Metrics, others: Metrics) -> list[Table]:
        return [self._table(metrics, data) for data in DATA]

    def _table(self, metrics: Metrics, data: str) -> Table:
        """A row per method, a column per k."""
        methods = metrics.methods(problem_at(data, 0))
        rows = [
            (
                m,
                f"{self.lr(problem_at(data, 0), m):g}",
                *(spread(metrics.final(problem_at(data, k), m, SCORE.name)) for k in self.exponents),
            )
            for m in methods
        ]
        header = ("method", "lr", *(f"10^{k}" for k in self.exponents))
        ends = tuple(f"10^{k}" for k in (self.exponents[0], 0, self.exponents[-1]))
        return Table(f"{data}: {SCORE.name}", header, rows, "Higher is better.", terminal=("method", *ends))

    def figures_of(self, metrics: Metrics, folder: Path) -> list[Figure]:
        from gradnorm_studies.analysis import figures

        panels = []
        for data in DATA:
            methods = metrics.methods(problem_at(data, 0))
            scores = {m: self._at_every_k(metrics, data, m).T.clip(-20) for m in methods}
            label = f"mean of {'accuracy and R²' if data == 'digits' else 'R²'} (%)"
            panels.append(
                figures.Curves(
                    data,
                    np.array(self.exponents, dtype=float),
                    scores,
                    label,
                    xlabel="k: one loss is multiplied by $10^k$",
                )
            )
        path = figures.over_time(folder / "units.svg", panels, columns=2)
        return [
            Figure(path, "Scores with one loss multiplied by 10^k: means over seeds, their range; cut off at −20 %.")
        ]
