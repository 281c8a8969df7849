"""§5: several dense tasks on one image, by SegNet or FCN, on rendered rooms or on NYUv2.

The settings, the claims and the report are here; the tasks are in `dense.py`, a run and its training in `scenes.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from gradnorm.report import Figure, Report, Table
from gradnorm.study import claims
from gradnorm.study.claims import Claim
from gradnorm.study.data.sample import CLASSES
from gradnorm.study.dense import ERROR, SETS, TASKS
from gradnorm.study.methods import METHODS
from gradnorm.study.metrics import Metrics
from gradnorm.study.run import Job, UsageError, command_line, config_table, read_result, setting

if TYPE_CHECKING:
    from gradnorm.study.scenes import Scenes

METRIC = "Δm"
"""The mean over tasks of the gain over one network a task in the paper's metric, in per cent."""
MOVING = ("gradnorm", "uncertainty", "dwa")
"""Methods whose weights change."""
DRAWN = ("equal", "gradnorm")
"""Methods whose pictures are shown beside the truth."""


@dataclass(frozen=True)
class VisionConfig:
    """The paper's settings; `PRESETS` has smaller ones. Chosen once, before any result was seen."""

    preset: str = setting("cpu", "For two cores, for one GPU, or the paper's.", choices=("cpu", "gpu", "paper"))
    data: str = setting("rooms", "Rendered rooms, or NYUv2 from --root.", choices=("rooms", "nyuv2"))
    root: str = setting("", "The folder that holds NYUv2; the page on the data set says what belongs there.")
    tasks: str = setting("seg", "Segmentation, depth, normals; or depth, normals, keypoints (§5).", choices=tuple(SETS))
    model: str = setting("segnet", "29 M or 15 M parameters at width 1.", choices=("segnet", "fcn"))
    methods: str = setting("gradnorm,static,single,equal,uncertainty,dwa", "Some of these, with commas.")
    alpha: float = setting(1.5, "The paper's, §5.", least=0)
    seeds: int = setting(3, "The fewest that show a spread; a seed sets the network and the batches.", least=1)
    steps: int = setting(20_000, "The paper's for NYUv2 with segmentation.", least=1)
    size: int = setting(320, "The paper's; height and width of the image, the truth's are a quarter.", least=32)
    width: float = setting(1.0, "Factor on all filters; 1 is the paper's network.", above=0)
    batch: int = setting(24, "The paper's.", least=1)
    lr: float = setting(2e-5, "The paper's, with Adam; times 0.2 after each 30 % of the steps.", above=0)
    weight_lr: float = setting(0.025, "The paper's, with Adam.", above=0)
    train_images: int = setting(795, "As in NYUv2; rooms can have any number.", least=1)
    test_images: int = setting(654, "As in NYUv2; rooms can have any number.", least=1)
    record_every: int = setting(500, "40 points on a curve.", least=1)
    precision: str = setting(
        "32-true", "Lightning's name for the precision.", choices=("32-true", "bf16-mixed", "bf16-true")
    )
    devices: int = setting(1, "GPUs, or processes on a CPU; more than one train by DDP.", least=1)


PRESETS = {
    "cpu": VisionConfig(
        steps=1500, size=64, width=0.25, batch=8, lr=1e-3, train_images=512, test_images=128, record_every=75
    ),
    "gpu": VisionConfig(preset="gpu", precision="bf16-mixed", steps=10_000, lr=2e-4, train_images=2000),
    "paper": VisionConfig(preset="paper"),
}


def add_delta(metrics: Metrics, problem: str, tasks: tuple[str, ...]) -> Metrics:
    """Adds Δm, if one network a task is among the methods."""
    if "single" not in metrics.methods(problem):
        return metrics
    names = tuple(TASKS[task].metric for task in tasks)
    seeds = metrics.seeds(problem, "single")
    finals = [metrics.final(problem, "single", name).tolist() for name in names]
    references = dict(zip(seeds, zip(*finals, strict=True), strict=True))

    def delta(seed: int, row: dict[str, float]) -> float:
        gains = [1 - row[name] / reference for name, reference in zip(names, references[seed], strict=True)]
        return 100 * sum(gains) / len(gains)

    return metrics.derived(METRIC, names, delta)


@dataclass(frozen=True)
class Vision:
    """The study; see the module."""

    config: VisionConfig = field(default_factory=lambda: PRESETS["cpu"])
    name: ClassVar[str] = "vision"
    config_class: ClassVar[type[VisionConfig]] = VisionConfig
    presets: ClassVar[dict[str, VisionConfig]] = PRESETS
    summary: ClassVar[str] = "§5: segmentation, depth, normals, keypoints by SegNet or FCN, on rooms or NYUv2."
    metric: ClassVar[str] = ERROR
    largest: ClassVar[bool] = False
    extra: ClassVar[tuple[str, tuple[str, ...]]] = ("vision", ("lightning", "torchmetrics", "h5py", "scipy"))

    @property
    def problem(self) -> str:
        """What tables call it."""
        return f"{self.config.data}+{self.config.tasks} {self.config.model}"

    @property
    def gpus(self) -> int:
        """What a run takes of a cluster that has some."""
        return self.config.devices

    def jobs(self) -> list[Job]:
        """GradNorm first, since the static runs wait for it.

        Raises:
            UsageError: `methods` names one that there is not, or static without gradnorm; the data have no keypoints.
        """
        if self.config.data == "nyuv2" and self.config.tasks == "kpts":
            raise UsageError("--tasks kpts: NYUv2's keypoints were never published; take --data rooms.")
        methods = [name.strip() for name in self.config.methods.split(",")]
        unknown = [name for name in methods if name not in METHODS]
        if unknown:
            raise UsageError(f"--methods names {unknown[0]!r}: choose from {', '.join(METHODS)}.")
        if "static" in methods and "gradnorm" not in methods:
            raise UsageError("--methods has static, whose weights are gradnorm's averages: add gradnorm.")
        methods.sort(key=lambda name: name != "gradnorm")
        return [self._job(method, seed) for seed in range(self.config.seeds) for method in methods]

    def _job(self, method: str, seed: int) -> Job:
        source = self._job("gradnorm", seed) if method == "static" else None
        return Job(self.problem, method, seed, self.config.lr, weights_from=source)

    def task_names(self, problem: str) -> tuple[str, ...]:
        """The tasks, in order."""
        return SETS[self.config.tasks]

    def experiment(self, job: Job) -> Scenes:
        """One run."""
        from gradnorm.study.scenes import Scenes  # needs the extra

        return Scenes(self.config, job)

    def train(self, job: Job, folder: Path, stop: Callable[[int], bool]) -> bool:
        """By Lightning."""
        from gradnorm.study.scenes import fit

        torch.manual_seed(job.seed)
        return fit(self.experiment(job), folder, stop)

    def report(self, metrics: Metrics, figures: Path) -> Report:
        """Tables, verdicts, figures."""
        tasks = SETS[self.config.tasks]
        metrics = add_delta(metrics, self.problem, tasks)
        methods = metrics.methods(self.problem)
        main = [METRIC, ERROR] if "single" in methods else [ERROR]
        paper = [TASKS[task].metric for task in tasks]
        asked = [claim for claim, needed in _claims(tasks) if needed <= {*methods}]
        return Report(
            title=f"§5 on {self.problem}",
            command=command_line(self.name, self.config, PRESETS[self.config.preset]),
            lead=[_lead(self.config), *self._losing(metrics)],
            tables=[
                self._table("Where each method ends", metrics, [*main, *paper]),
                claims.table(asked, metrics, (self.problem,)),
                self._table(
                    "What later papers report", metrics, [n for task in tasks for n in TASKS[task].errors.names[1:]]
                ),
                self._table("The weights at the end", metrics, [f"weight/{task}" for task in tasks]),
            ],
            figures=self._figures(metrics, [*main, *paper], figures),
            settings=config_table(self.config),
        )

    def _losing(self, metrics: Metrics) -> list[str]:
        if "gradnorm" not in metrics.methods(self.problem):
            return []
        return [claims.losses_of("gradnorm", metrics, (self.problem,), ERROR)]

    def _table(self, title: str, metrics: Metrics, quantities: list[str]) -> Table:
        rows = [
            (method, *(claims.spread(metrics.final(self.problem, method, name)) for name in quantities))
            for method in metrics.methods(self.problem)
        ]
        note = "Δm: higher is better. All others: lower is better." if METRIC in quantities else ""
        return Table(title, ("method", *(name.removeprefix("weight/") for name in quantities)), rows, note)

    def _figures(self, metrics: Metrics, quantities: list[str], folder: Path) -> list[Figure]:
        from gradnorm import plots

        methods, tasks = metrics.methods(self.problem), SETS[self.config.tasks]
        steps = metrics.steps(self.problem, methods[0], quantities[-1])
        late = slice(len(steps) // 5, None)
        curves, ends = [], []
        for name in quantities:
            series = {method: metrics.series(self.problem, method, name) for method in methods}
            curves.append(plots.Curves(name, steps[late], {m: v[:, late] for m, v in series.items()}, name))
            ends.append(plots.Ends(name, {m: v[:, -1] for m, v in series.items()}, name))
        weights = [
            plots.Curves(m, steps, {t: metrics.series(self.problem, m, f"weight/{t}") for t in tasks}, "weight")
            for m in methods
            if m in MOVING
        ]
        found = [
            Figure(plots.over_time(folder / "metric.png", curves, columns=2), "Test metrics: means over seeds, range."),
            Figure(plots.finals(folder / "finals.png", ends, columns=2), "Where each method ends, seed by seed."),
        ]
        if weights:
            found.append(Figure(plots.over_time(folder / "weights.png", weights, columns=3), "The weights over time."))
        if {*DRAWN} <= {*methods}:
            found.append(Figure(self._pictures(folder), "The first test images: truth, and what the first seed made."))
        return found

    def _pictures(self, folder: Path) -> Path:
        from gradnorm import plots
        from gradnorm.study.data.show import view
        from gradnorm.study.scenes import SHOWN, load

        jobs = {job.method: job for job in self.jobs() if job.seed == 0}
        made = {method: read_result(folder.parent, jobs[method])["pictures"] for method in DRAWN}
        truths = load(self.config.data, self.config.root, "test", SHOWN, self.config.size)
        rows = []
        for i in range(len(truths.image)):
            truth = replace(view(truths.map(lambda values: values[i])), boxes=None, labels=())  # noqa: B023
            row = {"truth": truth}
            for method in DRAWN:
                fields: dict[str, Any] = {task: np.array(values) for task, values in made[method][i].items()}
                row[method] = plots.View(method, truth.image, **fields)
            rows.append(row)
        return plots.comparison(folder / "pictures.png", rows, SETS[self.config.tasks], CLASSES)


def _claims(tasks: tuple[str, ...]) -> list[tuple[Claim, set[str]]]:
    """The paper's claims of §5, and the methods that each needs."""
    pairs = [
        ("GradNorm ends below equal weights", "§5, tables 1, 2", "gradnorm", "equal"),
        ("GradNorm ends below uncertainty weighting", "§5, table 2", "gradnorm", "uncertainty"),
        ("Static GradNorm weights end above equal weights", "§5.2", "static", "equal"),
        ("One GradNorm network ends below one network a task", "§5, tables 1, 2", "gradnorm", "single"),
    ]
    found = [
        (Claim(text, source, claims.below(ERROR, ours, theirs)), {ours, theirs}) for text, source, ours, theirs in pairs
    ]
    for name in (TASKS[task].metric for task in tasks):
        claim = Claim(f"GradNorm lowers {name}", "§5, tables 1, 2", claims.below(name, "gradnorm", "equal"))
        found.append((claim, {"gradnorm", "equal"}))
    settled = claims.settled("gradnorm", lambda _: tasks)
    return [*found, (Claim("GradNorm's weights are stable and converge", "§5.4", settled), {"gradnorm"})]


def _lead(config: VisionConfig) -> str:
    data = "rendered rooms" if config.data == "rooms" else "NYUv2"
    return (
        f"One {config.model} of width {config.width:g} learns {', '.join(SETS[config.tasks])} on {data}: "
        f"{config.size}×{config.size} pixels in, a quarter of it out, {config.train_images:,} training and "
        f"{config.test_images:,} test images, {config.steps:,} steps of {config.batch}; everything is shared up to the "
        f"last layer. All methods of a seed start from the same values and see the same batches; figures are mean ± "
        f"standard deviation over {config.seeds} seeds. Mean error is the geometric mean of the tasks' errors in the "
        f"paper's metrics; Δm the mean of their gains over one network a task, in per cent."
    )
