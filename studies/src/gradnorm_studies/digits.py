"""Two real scans on one canvas: classify the digit at the top left and at the bottom right, reconstruct the second.

Two cross entropies of about 2, and a squared error in the scans' own units (0 … 16), some twenty times as large.
The scans are scikit-learn's `load_digits`, 1,797 of 8×8 pixels; none is in both the training and the test set.

The learning rates of `RATES` are the outcome of `gradnorm reproduce digits --search --seeds 1`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import Claim
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import Figure, StudyReport, Table
from gradnorm_studies.engine.settings import command_line, config_table, setting
from gradnorm_studies.engine.study import Job
from gradnorm_studies.weightings import WeightingConfig, weighting

CANVAS, SCAN, CLASSES = 13, 8, 10
TASKS = ("first digit", "second digit", "second alone")
PROBLEM = "digits"
METRIC = "Δm"
SCORE = "mean of both accuracies and 100 R²"
"""The figure by which learning rates are chosen; R² is the reconstruction's explained share of variance."""
QUALITIES = {"first digit": "accuracy 1 %", "second digit": "accuracy 2 %", "second alone": "RMSE"}
"""Test metric by task."""

RATES = {"single": 3e-3, "equal": 3e-3, "uncertainty": 3e-3, "gradnorm": 3e-3, "static": 3e-3}


@dataclass(frozen=True)
class DigitsConfig:
    """Settings, chosen once, before any result was seen."""

    seeds: int = setting(
        3, "The fewest that show a spread; a seed sets the split, the network and the batches.", least=1
    )
    steps: int = setting(1000, "All runs of all methods in about a minute on two cores.", least=1)
    batch: int = setting(64, "A common size; every batch draws new pairs, each with its own shifts.", least=1)
    test_size: int = setting(1000, "Pairs of test scans; the same for every method with a seed.", least=1)
    test_share: float = setting(0.3, "Share of the scans kept for testing.", above=0, below=1)
    alpha: float = setting(1.5, "The paper's for scenes, §5: tasks of different kinds.", least=0)
    weight_lr: float = setting(0.025, "The paper's, §5, with Adam.", above=0)
    record_every: int = setting(20, "50 points per curve.", least=1)


class ScanPairs(NamedTuple):
    """Pairs of scans: the canvas and the second scan alone [n, 13, 13], both labels [n]."""

    canvas: Tensor
    first: Tensor
    second: Tensor
    alone: Tensor


class Pairs:
    """The scans, split by one seed, and the pairs of each step."""

    def __init__(self, config: DigitsConfig, seed: int) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        self._images = torch.tensor(images, dtype=torch.float32).view(-1, SCAN, SCAN)
        self._labels = torch.tensor(labels)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self._labels), generator=generator)
        n_test = round(config.test_share * len(order))
        self.test_scans, self.train_scans = order[:n_test], order[n_test:]
        self.test = self._pairs(self.test_scans, config.test_size, generator)
        self._seed = seed

    def batch(self, n: int, step: int) -> ScanPairs:
        """The batch of a step: the same for every method, and after resuming."""
        return self._pairs(self.train_scans, n, torch.Generator().manual_seed((self._seed + 1) * 1_000_003 + step))

    def _pairs(self, scans: Tensor, n: int, generator: torch.Generator) -> ScanPairs:
        first, second = scans[torch.randint(len(scans), (2, n), generator=generator)]
        near, far = torch.randint(3, (2, n, 2), generator=generator)
        upper = _place(self._images[first], near)
        lower = _place(self._images[second], far + CANVAS - SCAN - 2)
        return ScanPairs(torch.maximum(upper, lower), self._labels[first], self._labels[second], lower)


def _place(scans: Tensor, corners: Tensor) -> Tensor:
    """Scans [n, 8, 8] on empty canvases with their upper left corners at [n, 2]."""
    canvas = scans.new_zeros(len(scans), CANVAS, CANVAS)
    pixels = torch.arange(SCAN)
    rows = corners[:, 0, None, None] + pixels[:, None]
    columns = corners[:, 1, None, None] + pixels
    canvas[torch.arange(len(scans))[:, None, None], rows, columns] = scans
    return canvas


class Trunk(nn.Sequential):
    """[n, 1, 13, 13] → [n, 96]; the last layer is the paper's `W` where it is shared."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 96),
            nn.ReLU(),
        )


class Network(nn.Module):
    """One trunk for all tasks, or one per task, and an affine head per task."""

    def __init__(self, trunks: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(96, n) for n in (CLASSES, CLASSES, CANVAS * CANVAS))
        self.trunks = nn.ModuleList(Trunk() for _ in range(trunks))

    def forward(self, canvas: Tensor) -> list[Tensor]:
        """[n, 13, 13] in 0 … 16 → logits [n, 10], logits [n, 10], image [n, 13, 13]."""
        x = canvas.unsqueeze(1) / 16
        features = [trunk(x) for trunk in self.trunks]
        first, second, alone = (head(features[i % len(features)]) for i, head in enumerate(self.heads))
        return [first, second, alone.unflatten(1, (CANVAS, CANVAS))]


class Overlaid:
    tasks = TASKS

    def __init__(self, config: DigitsConfig, job: Job) -> None:
        self._config = config
        self._pairs = Pairs(config, job.seed)
        self.model = Network(trunks=len(TASKS) if job.method == "single" else 1)
        last = cast(Trunk, self.model.trunks[0])[-2]
        self.weighting = weighting(
            job.method, WeightingConfig(TASKS, last, config.alpha, config.weight_lr, job.weights)
        )
        self.optimizer = torch.optim.Adam([*self.model.parameters(), *self.weighting.parameters()], lr=job.lr)

    def losses(self, step: int) -> Tensor:
        """Two cross entropies and a mean squared error, [T]."""
        batch = self._pairs.batch(self._config.batch, step)
        first, second, alone = self.model(batch.canvas)
        return torch.stack(
            [
                F.cross_entropy(first, batch.first),
                F.cross_entropy(second, batch.second),
                F.mse_loss(alone, batch.alone),
            ]
        )

    def evaluate(self) -> dict[str, float]:
        """Accuracy of each digit in percent, root mean squared error in the scans' units."""
        test = self._pairs.test
        first, second, alone = self.model(test.canvas)
        values = (
            _accuracy(first, test.first),
            _accuracy(second, test.second),
            F.mse_loss(alone, test.alone).sqrt().item(),
        )
        explained = 1 - values[2] ** 2 / test.alone.var(correction=0).item()
        score = (values[0] + values[1] + 100 * explained) / 3
        return {SCORE: score, **{QUALITIES[task]: value for task, value in zip(TASKS, values, strict=True)}}


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def add_delta(metrics: Metrics) -> Metrics:
    """Add Δm: the mean over tasks of the final gain over the single-task networks of the same seed, in %."""
    seeds = metrics.seeds(PROBLEM, "single")
    finals = [metrics.final(PROBLEM, "single", quality).tolist() for quality in QUALITIES.values()]
    references = dict(zip(seeds, zip(*finals, strict=True), strict=True))

    def delta(seed: int, row: dict[str, float]) -> float:
        gains = []
        for quality, reference in zip(QUALITIES.values(), references[seed], strict=True):
            gain = row[quality] / reference - 1 if reference else math.nan
            gains.append(-gain if quality == "RMSE" else gain)
        return 100 * sum(gains) / len(gains)

    return metrics.derived(METRIC, tuple(QUALITIES.values()), delta)


CLAIMS = (
    Claim(
        "GradNorm ends above equal weights",
        "§5, tables 1, 2",
        claims.below(METRIC, "gradnorm", "equal", largest=True),
    ),
    Claim(
        "GradNorm ends above uncertainty weighting",
        "§5, table 2",
        claims.below(METRIC, "gradnorm", "uncertainty", largest=True),
    ),
    Claim(
        "One GradNorm network ends above one network per task",
        "§5, tables 1, 2",
        claims.below(METRIC, "gradnorm", "single", largest=True),
    ),
    Claim(
        "Static GradNorm weights end above equal weights",
        "§5.2",
        claims.below(METRIC, "static", "equal", largest=True),
    ),
    Claim("GradNorm's weights are stable and converge", "§4, fig. 2", claims.settled("gradnorm", lambda _: TASKS)),
)


@dataclass(frozen=True)
class Digits:
    config: DigitsConfig = field(default_factory=DigitsConfig)
    name: ClassVar[str] = "digits"
    config_class: ClassVar[type[DigitsConfig]] = DigitsConfig
    summary: ClassVar[str] = "Real scans: two digits on one canvas, to classify and to separate."
    metric: ClassVar[str] = SCORE
    largest: ClassVar[bool] = True

    def task_names(self, problem: str) -> tuple[str, ...]:
        return TASKS

    def jobs(self) -> list[Job]:
        """GradNorm first, since the static runs depend on it."""
        jobs = []
        for seed in range(self.config.seeds):
            gradnorm = Job(PROBLEM, "gradnorm", seed, RATES["gradnorm"])
            jobs += [gradnorm, *(Job(PROBLEM, m, seed, RATES[m]) for m in ("single", "equal", "uncertainty"))]
            jobs += [Job(PROBLEM, "static", seed, RATES["static"], weights_from=gradnorm)]
        return jobs

    def experiment(self, job: Job) -> Overlaid:
        return Overlaid(self.config, job)

    def report(self, metrics: Metrics, figures: Path) -> StudyReport:
        metrics = add_delta(metrics)
        return StudyReport(
            title="GradNorm on overlaid scans",
            command=command_line(self.name, self.config),
            lead=[_lead(self.config), claims.losses_of("gradnorm", metrics, (PROBLEM,), METRIC, largest=True)],
            tables=[_finals(metrics), claims.table(CLAIMS, metrics, (PROBLEM,))],
            figures=_figures(self.config, metrics, figures),
            settings=config_table(self.config),
        )


def _lead(config: DigitsConfig) -> str:
    return (
        f"Two real scans lie on one canvas. Three tasks share one network: classify the first digit, classify the "
        f"second (cross entropy, about 2), and reconstruct the second (squared error in the scans' units of 0 to 16, "
        f"far larger). No scan is in both the training and the test set. All methods with a seed start from the same "
        f"initial values and see the same batches, for {config.steps:,} steps; figures are mean ± standard deviation "
        f"over {config.seeds} seeds. Δm is the mean over tasks of the relative gain over one network per task, in "
        f"percent: higher is better."
    )


def _finals(metrics: Metrics) -> Table:
    quantities = (METRIC, *QUALITIES.values(), *(f"weight/{task}" for task in TASKS))
    rows = []
    for method in metrics.methods(PROBLEM):
        values = [claims.spread(metrics.final(PROBLEM, method, quantity)) for quantity in quantities]
        rows.append((method, f"{RATES[method]:g}", *values))
    header = ("method", "lr", "Δm %", *QUALITIES.values(), *(f"w, {task}" for task in TASKS))
    shown = ("method", "Δm %", *QUALITIES.values())
    note = "single: one network per task, the reference of Δm."
    return Table("Where each method ends", header, rows, note, terminal=shown)


def _figures(config: DigitsConfig, metrics: Metrics, folder: Path) -> list[Figure]:
    from gradnorm_studies.analysis import figures

    methods = metrics.methods(PROBLEM)
    steps = metrics.steps(PROBLEM, "gradnorm", METRIC)
    curves, ends = [], []
    for task, quality in (("Δm", METRIC), *QUALITIES.items()):
        series = {m: metrics.series(PROBLEM, m, quality) for m in methods}
        # The first tenth spans the whole scale and would hide the rest.
        late = slice(len(steps) // 10, None)
        curves.append(figures.Curves(task, steps[late], {m: v[:, late] for m, v in series.items()}, quality))
        ends.append(figures.Ends(task, {m: v[:, -1] for m, v in series.items()}, quality))
    weights = []
    for method in ("gradnorm", "uncertainty"):
        traces = {task: metrics.series(PROBLEM, method, f"weight/{task}") for task in TASKS}
        weights.append(figures.Curves(method, steps, traces, "weight", log=True))
    rows = _samples(Pairs(config, seed=0).test)
    over_time, finals = figures.over_time, figures.finals
    return [
        Figure(figures.images(folder / "samples.png", rows), "Test samples: the canvas, and the second scan."),
        Figure(over_time(folder / "metric.png", curves, columns=2), "Test metrics: means over seeds and their range."),
        Figure(over_time(folder / "weights.png", weights), "The weights over time."),
        Figure(
            finals(folder / "finals.png", ends, columns=2),
            "Where each method ends, seed by seed, and the mean.",
        ),
    ]


def _samples(test: ScanPairs) -> dict[str, list[np.ndarray]]:
    return {
        "canvas": [image.numpy() for image in test.canvas[:8]],
        "second\nalone": [image.numpy() for image in test.alone[:8]],
    }
