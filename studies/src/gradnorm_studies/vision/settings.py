"""The settings of the studies on images, and presets of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradnorm_studies.engine.settings import ALPHA, BATCH, RECORD_EVERY, STEPS, TrainingConfig, setting
from gradnorm_studies.vision.data.rooms import STYLES
from gradnorm_studies.vision.tasks import SETS

PRESET = "Name of the defaults for all other settings."


@dataclass(frozen=True)
class ImageConfig(TrainingConfig):
    """Settings of all studies on images; defaults are the paper's (§5) where it has any, presets differ."""

    preset: str = setting("cpu", PRESET, "For two cores; gpu is for one GPU.", choices=("cpu", "gpu", "paper"))
    model: str = setting(
        "segnet",
        "Network: SegNet (29 M parameters at width 1) or FCN (15 M).",
        "The paper has both.",
        choices=("segnet", "fcn"),
    )
    seeds: int = setting(
        3, "Number of seeds; each sets the network and the batches.", "The fewest that show a spread.", least=1
    )
    steps: int = setting(20_000, STEPS, "The paper trains 20,000 on NYUv2 with segmentation.", least=1)
    record_every: int = setting(500, RECORD_EVERY, "20 to 40 points per curve.", least=1)
    alpha: float = setting(1.5, ALPHA, "The paper's, §5.", least=0)
    lr: float = setting(
        2e-5,
        "The networks' learning rate, with Adam, times 0.2 after each 30 % of the steps; 0: for each method the one "
        "that --search found.",
        "The paper starts at 2e-5.",
        least=0,
    )
    size: int = setting(
        320, "Height and width of the image; the ground truth's are a quarter.", "The paper's.", least=32
    )
    width: float = setting(1.0, "Factor on the number of all filters.", "1 is the paper's network.", above=0)
    batch: int = setting(24, BATCH, "The paper has 24.", least=1)
    train_images: int = setting(
        795,
        "Number of training images.",
        "As NYUv2 has, which gives the validation images of them; rooms: any.",
        least=1,
    )
    validation_images: int = setting(
        80,
        "Number of validation images, never trained on, by which learning rates and best steps are chosen.",
        "A tenth of NYUv2's training images; rooms have their own.",
        least=1,
    )
    test_images: int = setting(654, "Number of test images.", "As NYUv2 has; rooms: any.", least=1)
    rooms: str = setting(
        "full",
        "Rooms as they are, or sparse: few and large objects of five classes.",
        "As hard as they can be; a small detector learns the sparse ones.",
        choices=tuple(STYLES),
    )
    precision: str = setting(
        "32-true",
        "Precision, by Lightning's name.",
        "Works on any machine.",
        choices=("32-true", "bf16-mixed"),
    )
    devices: int = setting(1, "GPUs, or processes on a CPU; several train with DDP.", "One process per run.", least=1)


class Rates(NamedTuple):
    """Learning rates of a preset."""

    searched: tuple[float, ...]
    """Those that `--search` tries for each method."""
    default: float
    """The rate of methods that were never searched."""


CPU: Mapping[str, Any] = {
    "steps": 2000,
    "rooms": "sparse",
    "size": 96,
    "width": 0.25,
    "batch": 16,
    "lr": 0.0,
    "train_images": 2048,
    "validation_images": 256,
    "test_images": 512,
    "record_every": 100,
}
"""For two cores: small images of sparse rooms, a narrow network, few steps, and the larger rates that these need.

Chosen by what FCN learned on validation images of a seed that is not reported: a detector of its own finds half of the
objects (AP50), and depth, normals and classes are better than the usual value of a pixel's place.
"""
GPU: Mapping[str, Any] = {
    "preset": "gpu",
    "precision": "bf16-mixed",
    "steps": 10_000,
    "lr": 0.0,
    "train_images": 2000,
    "validation_images": 200,
}
"""The paper's images and network, half its steps, and larger learning rates."""


@dataclass(frozen=True)
class VisionConfig(ImageConfig):
    """The paper's settings; `VISION_PRESETS` has smaller ones."""

    preset: str = setting(
        "cpu",
        PRESET,
        "For two cores; nyuv2 is for two cores and NYUv2, gpu for one GPU, paper has the paper's.",
        choices=("cpu", "nyuv2", "gpu", "paper"),
    )
    data: str = setting(
        "rooms", "Data: rendered rooms, or NYUv2 from --root.", "Rooms need no download.", choices=("rooms", "nyuv2")
    )
    image_width: int = setting(0, "Width of the image; 0: as its height.", "Rooms are square.", least=0)
    root: str = setting(
        "",
        "Path of NYUv2: its folder, or a file that `gradnorm data nyuv2 --out` wrote.",
        "Rooms need none.",
        is_place=True,
    )
    tasks: str = setting(
        "seg",
        "Tasks: segmentation, depth, normals (seg), or depth, normals, keypoints (kpts).",
        "§5 has both; keypoints only rooms.",
        choices=tuple(SETS),
    )


NYUV2: Mapping[str, Any] = {
    **CPU,
    "preset": "nyuv2",
    "data": "nyuv2",
    "model": "fcn",
    "image_width": 128,
    "batch": 24,
    "steps": 3000,
    "record_every": 300,
    "train_images": 715,
    "validation_images": 80,
    "test_images": 654,
}
"""For two cores: the small file's own size, all images a hundred times, and the network whose step costs half of
SegNet's there."""

VISION_PRESETS = {
    "cpu": VisionConfig(**CPU),
    "nyuv2": VisionConfig(**NYUV2),
    "gpu": VisionConfig(**GPU),
    "paper": VisionConfig(preset="paper"),
}
VISION_RATES = {
    "cpu": Rates((1e-4, 3e-4, 1e-3, 3e-3), default=1e-3),
    "nyuv2": Rates((3e-4, 1e-3, 3e-3), default=1e-3),  # 1e-4 was no method's best with SegNet
    "gpu": Rates((2e-5, 6e-5, 2e-4, 6e-4), default=2e-4),
    "paper": Rates((2e-6, 6e-6, 2e-5, 6e-5, 2e-4), default=2e-5),
}


@dataclass(frozen=True)
class DetectConfig(ImageConfig):
    preset: str = setting("cpu", PRESET, "For two cores; gpu is for one GPU.", choices=("cpu", "gpu"))


DETECT_PRESETS = {"cpu": DetectConfig(**{**CPU, "model": "fcn"}), "gpu": DetectConfig(**GPU)}
DETECT_RATES = {"cpu": Rates((3e-4, 1e-3, 3e-3, 1e-2), default=3e-3), "gpu": VISION_RATES["gpu"]}
