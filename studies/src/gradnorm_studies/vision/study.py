"""The studies on images: §5's dense tasks, and detection beside classification and segmentation.

A study defines data, tasks (`tasks.py`, `detection.py`) and claims; a run and its training are in `module.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import RULES, Claim, spread
from gradnorm_studies.analysis.metrics import Metrics, Quantity
from gradnorm_studies.analysis.report import Figure, Table
from gradnorm_studies.analysis.summary import BURN_IN
from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.engine.experiment import Job, Stop
from gradnorm_studies.engine.results import read_result
from gradnorm_studies.engine.study import Extra, Study
from gradnorm_studies.vision.data.nyuv2 import OFFICIAL
from gradnorm_studies.vision.data.nyuv2.scenes import missing
from gradnorm_studies.vision.detection import CLASSIFICATION, DETECTION
from gradnorm_studies.vision.loading import Images, load
from gradnorm_studies.vision.models.dense import STRIDE
from gradnorm_studies.vision.pictures import DRAWN, SHOWN, compare
from gradnorm_studies.vision.settings import (
    DETECT_PRESETS,
    DETECT_RATES,
    VISION_PRESETS,
    VISION_RATES,
    DetectConfig,
    ImageConfig,
    Rates,
    VisionConfig,
)
from gradnorm_studies.vision.tasks import ERROR, SETS, TASKS, TEST_LOSS, ImageTask
from gradnorm_studies.weightings import AVERAGED

if TYPE_CHECKING:
    from gradnorm_studies.vision.module import VisionModule

GAIN = Quantity("Δm %", largest=True)
"""The mean over tasks of the gain over one network per task in the task's first metric, in percent."""
REGULARIZED = ("equal", *RULES.values())
"""Methods whose training and test losses are drawn side by side, as in the paper's fig. 3."""
LIGHT = 0.1
"""The paper's weight of depth falls below this at α = 1.5."""
SMOOTHED = 0.1
"""A training loss is drawn as the mean over this part of the records: each is of one batch."""

I = TypeVar("I", bound=ImageConfig)  # noqa: E741 - of images


class ImageStudy(Study[I]):
    """Base of the studies on images; subclasses define data, problem and tasks."""

    metric = ERROR
    extra = Extra("vision", ("lightning", "torchmetrics", "h5py", "scipy", "pycocotools"))
    rates: Mapping[str, Rates]
    """Learning rates by preset."""
    where: str
    """Description of the data."""

    def __init__(self, config: I, problem: str, image_tasks: Mapping[str, ImageTask], images: Images) -> None:
        super().__init__(config)
        self.problems = (problem,)
        self.image_tasks, self.images = image_tasks, images
        self._own = [image_task.quantities[0] for image_task in image_tasks.values()]
        self.quantities = (GAIN, *self._own)
        self.search_rates, self.default_lr = self.rates[self.config.preset]
        self.gpus = self.config.devices

    def tasks(self, problem: str) -> tuple[str, ...]:
        return tuple(self.image_tasks)

    def experiment(self, job: Job) -> VisionModule:
        from gradnorm_studies.vision.module import VisionModule  # needs the extra

        return VisionModule(self.config, self.image_tasks, self.images, job)

    def train(self, job: Job, folder: Path, stop: Stop) -> bool:
        """Train with Lightning."""
        from gradnorm_studies.vision.module import fit

        torch.manual_seed(job.seed)
        return fit(self.experiment(job), folder, stop)

    def jobs(self) -> list[Job]:
        """As for all studies.

        Raises:
            UsageError: A size that the networks cannot halve, and see `Study`.
        """
        for option, side in zip(("--size", "--image-width"), self.images.size, strict=True):
            if side % STRIDE:
                raise UsageError(
                    f"{option} is {side}: give a multiple of {STRIDE}, which is how far networks reduce it."
                )
        return super().jobs()

    def lead(self) -> str:
        config = self.config
        return (
            f"One {config.model} of width {config.width:g} learns {', '.join(self.image_tasks)} on {self.where}: "
            f"{'×'.join(map(str, self.images.size))} pixels in, a quarter of it out, {self.images.train:,} training, "
            f"{self.images.validation:,} validation and {self.images.test:,} test images, {config.steps:,} steps "
            f"of {config.batch}; all is shared but the tasks' heads. All methods with a seed but single start "
            f"from the same initial values, and all see the same batches. {ERROR.name.capitalize()} is the geometric "
            f"mean of the tasks' errors, each in its first metric; {GAIN.name} the mean of their gains over one "
            f"network per task, in %."
        )

    def asked(self) -> Sequence[Claim]:
        """The claims of §5, about these tasks."""
        return _claims(self._own, self.tasks(self.problems[0]))

    def derive(self, metrics: Metrics) -> Metrics:
        """Add `GAIN`."""
        return metrics.with_gains(GAIN.name, self.problems[0], self._own)

    def more_tables(self, metrics: Metrics) -> list[Table]:
        """The metrics of later papers."""
        (problem,) = self.problems
        names = [quantity.name for each in self.image_tasks.values() for quantity in each.quantities[1:]]
        rows = [
            (method, *(spread(metrics.final(problem, method, name)) for name in names))
            for method in metrics.methods(problem)
        ]
        note = "Mean ± standard deviation over seeds; lower is better."
        return [Table("What later papers report", ("method", *names), rows, note, terminal=None)]

    def more_figures(self, metrics: Metrics, folder: Path) -> list[Figure]:
        """Training against test losses (fig. 3), and predictions."""
        methods = metrics.methods(self.problems[0])
        found = []
        compared = [method for method in REGULARIZED if method in methods]
        if compared and self.config.steps > self.config.record_every:
            caption = (
                "Losses over time, of training batches and of all test images: means over seeds, their range. Training "
                "batches are augmented, and scaling brings them closer, so that losses of depth are lower there: "
                "compare how both change."
            )
            found.append(Figure(self._losses(metrics, compared, folder / "losses.svg"), caption))
        if {*DRAWN} <= {*methods}:
            caption = "The first test images: ground truth, and predictions of the first seed."
            found.append(Figure(self._pictures(folder), caption))
        return found

    def _losses(self, metrics: Metrics, methods: Sequence[str], path: Path) -> Path:
        """A row per task, a panel per method."""
        from gradnorm_studies.analysis import figures

        panels = [
            panel for task in self.image_tasks for panel in _loss_panels(metrics, self.problems[0], methods, task)
        ]
        return figures.over_time(path, panels, columns=len(methods))

    def _pictures(self, folder: Path) -> Path:
        jobs = {job.method: job for job in self.jobs() if job.seed == 0}
        made = {method: read_result(folder.parent, jobs[method])["pictures"] for method in DRAWN}
        truths = load(replace(self.images, test=min(SHOWN, self.images.test)), "test")
        return compare(folder / "pictures.png", truths, made, tuple(self.image_tasks))


def _loss_panels(metrics: Metrics, problem: str, methods: Sequence[str], task: str):
    """A task's training and test loss by method, on one scale, without the first records, which would set that."""
    from gradnorm_studies.analysis import figures

    panels = []
    for method in methods:
        steps = metrics.steps(problem, method, f"loss/{task}")
        late = slice(round(BURN_IN * len(steps)), len(steps))  # a test loss has one record more, at the end
        trained = _smoothed(metrics.series(problem, method, f"loss/{task}"))
        tested = metrics.series(problem, method, TEST_LOSS + task)
        curves = {"training": trained[:, late], "test": tested[:, late]}
        panels.append(figures.Curves(f"{task}: {method}", steps[late], curves, f"{task} loss", xlabel=figures.STEP))
    values = np.concatenate([values.ravel() for panel in panels for values in panel.values.values()])
    low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    return [replace(panel, ylim=(float(low), float(high))) for panel in panels]


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[seeds, R], the mean over the last `SMOOTHED` of the records."""
    count = values.shape[1]
    window = max(1, round(SMOOTHED * count))
    return np.stack([values[:, max(0, i + 1 - window) : i + 1].mean(axis=1) for i in range(count)], axis=1)


def _claims(own: Sequence[Quantity], tasks: tuple[str, ...]) -> tuple[Claim, ...]:
    """The claims of §5 about any set of tasks, on both updates; `own` are the tasks' first metrics."""
    found = []
    for rule, method in RULES.items():
        pairs = [
            (f"{rule} ends below equal weights", "§5, tables 1, 2", method, "equal"),
            (f"{rule} ends below uncertainty weighting", "§5, table 2", method, "uncertainty"),
            (f"{rule} ends below losses divided by their first values", "ours", method, "divided"),
            (f"{rule}: its averages as static weights end below equal weights", "§5.2", AVERAGED[method], "equal"),
            (f"{rule}: one network ends below one network per task", "§5, tables 1, 2", method, "single"),
        ]
        found += [Claim(text, source, claims.beats(ERROR, ours, theirs)) for text, source, ours, theirs in pairs]
        found += [
            Claim(f"{rule} lowers {quantity.name}", "§5, tables 1, 2", claims.beats(quantity, method, "equal"))
            for quantity in own
        ]
        settled = claims.settled(method, lambda problem: tasks)
        found.append(Claim(f"{rule}: its weights are stable and converge", "§5.4", settled))
    return tuple(found)


def _images(config: ImageConfig, data: str, root: str = "", width: int = 0) -> Images:
    size = config.size, width or config.size
    train, held_out, test = config.train_images, config.validation_images, config.test_images
    if data == "nyuv2":
        train, test = min(train, OFFICIAL["train"] - held_out), min(test, OFFICIAL["test"])
    return Images(data, root, train, held_out, test, size, config.rooms)


def _rooms(config: ImageConfig) -> str:
    return "rooms" if config.rooms == "full" else f"{config.rooms} rooms"


def _problem(config: ImageConfig, name: str) -> str:
    """The problem's name; the width is part of it, since learning rates are chosen per problem."""
    return f"{name} {config.model}" + (f" ×{config.width:g}" if config.width != 1 else "")


class Vision(ImageStudy[VisionConfig]):
    """§5: several dense tasks on one image, by SegNet or FCN, on rendered rooms or on NYUv2."""

    name = "vision"
    title = "GradNorm on several dense tasks of one image"
    summary = "§5: segmentation, depth, normals, keypoints by SegNet or FCN, on rooms or NYUv2."
    default = VISION_PRESETS["cpu"]
    presets = VISION_PRESETS
    rates = VISION_RATES

    def __init__(self, config: VisionConfig | None = None) -> None:
        chosen = VISION_PRESETS["cpu"] if config is None else config
        problem = _problem(chosen, f"{_rooms(chosen) if chosen.data == 'rooms' else chosen.data}+{chosen.tasks}")
        image_tasks = {name: TASKS[name] for name in SETS[chosen.tasks]}
        super().__init__(chosen, problem, image_tasks, _images(chosen, chosen.data, chosen.root, chosen.image_width))
        self.where = "rendered rooms" if chosen.data == "rooms" else "NYUv2"

    def asked(self) -> Sequence[Claim]:
        """Those of all studies on images, and that depth, which overfits, is held back."""
        text = f"{{}} holds depth back: its weight ends below {LIGHT:g}"
        own = [Claim(text.format(rule), "§5.4", claims.light(method, "depth", LIGHT)) for rule, method in RULES.items()]
        return [*super().asked(), *own]

    def jobs(self) -> list[Job]:
        """As for all studies.

        Raises:
            UsageError: The data are not there, are not read, or have no keypoints or no such size, and see `Study`.
        """
        (self._check_rooms if self.config.data == "rooms" else self._check_nyuv2)(self.config.root)
        return super().jobs()

    def _check_rooms(self, root: str) -> None:
        height, width = self.images.size
        if width != height:
            raise UsageError(f"--image-width {width}: rooms are square; leave it out, or take --data nyuv2.")
        if root:
            raise UsageError(f"--root {root}: rooms are rendered, not read; leave it out, or take --data nyuv2.")

    def _check_nyuv2(self, root: str) -> None:
        if self.config.tasks == "kpts":
            raise UsageError("--tasks kpts: NYUv2's keypoints were never published; take --data rooms.")
        if not root:
            raise UsageError("--data nyuv2 needs --root: its folder, or a file that `gradnorm data nyuv2 --out` wrote.")
        if not Path(root).exists():
            raise missing(Path(root), "nothing")


class Detect(ImageStudy[DetectConfig]):
    """Image classification, object detection and segmentation by one network, as in perception models.

    The losses are of different kinds: a cross entropy per image, a sum over an object's parts, a cross entropy per
    pixel. The classifier reads the encoder's output, detection and segmentation the decoder's; so `W` is the encoder's
    last layer, the last that all three share. Only rooms have boxes and kinds.
    """

    name = "detect"
    title = "GradNorm on classification, detection and segmentation"
    summary = "Classification, detection and segmentation by SegNet or FCN, on rooms."
    default = DETECT_PRESETS["cpu"]
    presets = DETECT_PRESETS
    rates = DETECT_RATES
    is_papers = False
    where = "rendered rooms"

    def __init__(self, config: DetectConfig | None = None) -> None:
        chosen = DETECT_PRESETS["cpu"] if config is None else config
        image_tasks = {
            "classification": CLASSIFICATION,
            "detection": DETECTION,
            "segmentation": TASKS["segmentation"],
        }
        super().__init__(chosen, _problem(chosen, f"{_rooms(chosen)}+detect"), image_tasks, _images(chosen, "rooms"))
