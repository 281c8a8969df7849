"""The studies on images: §5's dense tasks, and detection beside classification and segmentation.

A study defines data, tasks (`tasks.py`, `detection.py`) and claims; a run and its training are in `module.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import Claim
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import Figure, StudyReport, Table
from gradnorm_studies.engine.results import read_result
from gradnorm_studies.engine.settings import command_line, config_table
from gradnorm_studies.engine.study import Job, UsageError
from gradnorm_studies.vision.detection import CLASSIFICATION, DETECTION
from gradnorm_studies.vision.pictures import DRAWN, SHOWN, compare
from gradnorm_studies.vision.settings import (
    DETECT_PRESETS,
    VISION_PRESETS,
    DetectConfig,
    ImageConfig,
    VisionConfig,
)
from gradnorm_studies.vision.tasks import ERROR, SETS, TASKS, Task
from gradnorm_studies.weightings import METHODS

if TYPE_CHECKING:
    from gradnorm_studies.vision.module import VisionModule

METRIC = "Δm"
"""The mean over tasks of the gain over one network per task in the task's own metric, in percent."""
MOVING = ("gradnorm", "uncertainty", "dwa")
"""Methods whose weights change."""


@dataclass(frozen=True)
class ImageStudy(ABC):
    """Base of the studies on images; subclasses define data, tasks and problem."""

    config: ImageConfig
    name: ClassVar[str]
    presets: ClassVar[Mapping[str, ImageConfig]]
    metric: ClassVar[str] = ERROR
    largest: ClassVar[bool] = False
    is_papers: ClassVar[bool] = True
    """Whether the claims are the paper's about these very tasks."""
    extra: ClassVar[tuple[str, tuple[str, ...]]] = (
        "vision",
        ("lightning", "torchmetrics", "h5py", "scipy", "pycocotools"),
    )

    @property
    @abstractmethod
    def problem(self) -> str:
        """Name of the problem in tables."""

    @property
    @abstractmethod
    def tasks(self) -> Mapping[str, Task]:
        """By name, in order."""

    @property
    @abstractmethod
    def data(self) -> tuple[str, str]:
        """The data set's name, and the folder it lies in, if any."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Description of the data."""

    @property
    def gpus(self) -> int:
        """GPUs that a run takes from a cluster that has some."""
        return self.config.devices

    def jobs(self) -> list[Job]:
        """GradNorm first, since the static runs depend on it.

        Raises:
            UsageError: `methods` names one that there is not, or static without gradnorm.
        """
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
        return tuple(self.tasks)

    def experiment(self, job: Job) -> VisionModule:
        from gradnorm_studies.vision.module import VisionModule  # needs the extra

        return VisionModule(self.config, self.tasks, self.data, job)

    def train(self, job: Job, folder: Path, stop: Callable[[int], bool]) -> bool:
        from gradnorm_studies.vision.module import fit

        torch.manual_seed(job.seed)
        return fit(self.experiment(job), folder, stop)

    def report(self, metrics: Metrics, figures: Path) -> StudyReport:
        metrics = add_delta(metrics, self.problem, self.tasks)
        main = [METRIC, ERROR] if "single" in metrics.methods(self.problem) else [ERROR]
        own = [task.metric for task in self.tasks.values()]
        more = [name for task in self.tasks.values() for name in task.errors.names[1:]]
        return StudyReport(
            title=f"{type(self).__name__}: {self.problem}",
            command=command_line(self.name, self.config, self.presets[self.config.preset]),
            lead=[self._lead(), *self._losing(metrics)],
            tables=[
                self._table("Where each method ends", metrics, [*main, *own]),
                self._verdicts(metrics),
                self._table("What later papers report", metrics, more),
                self._table("The weights at the end", metrics, [f"weight/{task}" for task in self.tasks]),
            ],
            figures=self._figures(metrics, [*main, *own], figures),
            settings=config_table(self.config),
        )

    def _claims(self) -> list[tuple[Claim, set[str]]]:
        """The claims of §5 about any set of tasks, and the methods that each is about."""
        pairs = [
            ("GradNorm ends below equal weights", "§5, tables 1, 2", "gradnorm", "equal"),
            ("GradNorm ends below uncertainty weighting", "§5, table 2", "gradnorm", "uncertainty"),
            ("Static GradNorm weights end below equal weights", "§5.2", "static", "equal"),
            ("One GradNorm network ends below one network per task", "§5, tables 1, 2", "gradnorm", "single"),
        ]
        found = [
            (Claim(text, source, claims.below(ERROR, ours, theirs)), {ours, theirs})
            for text, source, ours, theirs in pairs
        ]
        for name in (task.metric for task in self.tasks.values()):
            claim = Claim(f"GradNorm lowers {name}", "§5, tables 1, 2", claims.below(name, "gradnorm", "equal"))
            found.append((claim, {"gradnorm", "equal"}))
        settled = claims.settled("gradnorm", self.task_names)
        return [*found, (Claim("GradNorm's weights are stable and converge", "§5.4", settled), {"gradnorm"})]

    def _verdicts(self, metrics: Metrics) -> Table:
        """On the claims about methods that were run."""
        methods = {*metrics.methods(self.problem)}
        asked = [claim for claim, needed in self._claims() if needed <= methods]
        found = claims.table(asked, metrics, (self.problem,))
        return found if self.is_papers else claims.as_questions(found)

    def _lead(self) -> str:
        config = self.config
        return (
            f"One {config.model} of width {config.width:g} learns {', '.join(self.tasks)} on {self.where}: "
            f"{config.size}×{config.size} pixels in, a quarter of it out, {config.train_images:,} training and "
            f"{config.test_images:,} test images, {config.steps:,} steps of {config.batch}; all is shared but the "
            f"tasks' heads. All methods with a seed start from the same initial values and see the same batches; "
            f"figures are mean ± standard deviation over {config.seeds} seeds. Mean error is the geometric mean of the "
            f"tasks' errors, each in its first metric; Δm the mean of their gains over one network per task, in %."
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
        from gradnorm_studies.analysis import figures

        methods = metrics.methods(self.problem)
        steps = metrics.steps(self.problem, methods[0], quantities[-1])
        late = slice(len(steps) // 5, None)
        curves, ends = [], []
        for name in quantities:
            series = {method: metrics.series(self.problem, method, name) for method in methods}
            curves.append(figures.Curves(name, steps[late], {m: v[:, late] for m, v in series.items()}, name))
            ends.append(figures.Ends(name, {m: v[:, -1] for m, v in series.items()}, name))
        weights = [
            figures.Curves(m, steps, {t: metrics.series(self.problem, m, f"weight/{t}") for t in self.tasks}, "weight")
            for m in methods
            if m in MOVING
        ]
        found = [
            Figure(
                figures.over_time(folder / "metric.png", curves, columns=2), "Test metrics: means over seeds, range."
            ),
            Figure(figures.finals(folder / "finals.png", ends, columns=2), "Where each method ends, seed by seed."),
        ]
        if weights:
            found.append(
                Figure(figures.over_time(folder / "weights.png", weights, columns=3), "The weights over time.")
            )
        if {*DRAWN} <= {*methods}:
            caption = "The first test images: ground truth, and predictions of the first seed."
            found.append(Figure(self._pictures(folder), caption))
        return found

    def _pictures(self, folder: Path) -> Path:
        from gradnorm_studies.vision.loading import load

        jobs = {job.method: job for job in self.jobs() if job.seed == 0}
        made = {method: read_result(folder.parent, jobs[method])["pictures"] for method in DRAWN}
        truths = load(*self.data, "test", SHOWN, self.config.size)
        return compare(folder / "pictures.png", truths, made, tuple(self.tasks))


def add_delta(metrics: Metrics, problem: str, tasks: Mapping[str, Task]) -> Metrics:
    """Add Δm, if one network per task is among the methods."""
    if "single" not in metrics.methods(problem):
        return metrics
    names = tuple(task.metric for task in tasks.values())
    seeds = metrics.seeds(problem, "single")
    finals = [metrics.final(problem, "single", name).tolist() for name in names]
    references = dict(zip(seeds, zip(*finals, strict=True), strict=True))

    def delta(seed: int, row: dict[str, float]) -> float:
        pairs = zip(names, references[seed], strict=True)
        gains = [1 - row[name] / reference if reference else math.nan for name, reference in pairs]
        return 100 * sum(gains) / len(gains)

    return metrics.derived(METRIC, names, delta)


@dataclass(frozen=True)
class Vision(ImageStudy):
    """§5: several dense tasks on one image, by SegNet or FCN, on rendered rooms or on NYUv2."""

    config: VisionConfig = field(default_factory=lambda: VISION_PRESETS["cpu"])
    name: ClassVar[str] = "vision"
    config_class: ClassVar[type[VisionConfig]] = VisionConfig
    presets: ClassVar[Mapping[str, VisionConfig]] = VISION_PRESETS
    summary: ClassVar[str] = "§5: segmentation, depth, normals, keypoints by SegNet or FCN, on rooms or NYUv2."

    @property
    def problem(self) -> str:
        return f"{self.config.data}+{self.config.tasks} {self.config.model}"

    @property
    def tasks(self) -> Mapping[str, Task]:
        return {name: TASKS[name] for name in SETS[self.config.tasks]}

    @property
    def data(self) -> tuple[str, str]:
        return self.config.data, self.config.root

    def jobs(self) -> list[Job]:
        """As for all studies on images.

        Raises:
            UsageError: The data have no keypoints, and see `ImageStudy`.
        """
        if self.config.data == "nyuv2" and self.config.tasks == "kpts":
            raise UsageError("--tasks kpts: NYUv2's keypoints were never published; take --data rooms.")
        return super().jobs()

    @property
    def where(self) -> str:
        return "rendered rooms" if self.config.data == "rooms" else "NYUv2"


@dataclass(frozen=True)
class Detect(ImageStudy):
    """Image classification, object detection and segmentation by one network, as in perception models.

    The losses are of different kinds: a cross entropy per image, a sum over an object's parts, a cross entropy per
    pixel. The classifier reads the encoder's output, detection and segmentation the decoder's; so `W` is the encoder's
    last layer, the last that all three share.
    """

    config: DetectConfig = field(default_factory=lambda: DETECT_PRESETS["cpu"])
    name: ClassVar[str] = "detect"
    config_class: ClassVar[type[DetectConfig]] = DetectConfig
    presets: ClassVar[Mapping[str, DetectConfig]] = DETECT_PRESETS
    summary: ClassVar[str] = "Classification, detection and segmentation by SegNet or FCN, on rooms."
    is_papers: ClassVar[bool] = False

    @property
    def problem(self) -> str:
        return f"rooms+detect {self.config.model}"

    @property
    def tasks(self) -> Mapping[str, Task]:
        """An image's, an object's, a pixel's."""
        return {"classification": CLASSIFICATION, "detection": DETECTION, "segmentation": TASKS["segmentation"]}

    @property
    def data(self) -> tuple[str, str]:
        """NYUv2 has neither boxes nor kinds of room."""
        return "rooms", ""

    @property
    def where(self) -> str:
        return "rendered rooms"
