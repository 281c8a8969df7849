"""The settings of the studies on images, and presets of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradnorm_studies.engine.settings import TrainingConfig, setting
from gradnorm_studies.vision.tasks import SETS


@dataclass(frozen=True)
class ImageConfig(TrainingConfig):
    """Settings of all studies on images; defaults are the paper's (§5) where it has any, presets differ."""

    preset: str = setting("cpu", "For two cores, for one GPU, or the paper's.", choices=("cpu", "gpu", "paper"))
    model: str = setting("segnet", "29 M or 15 M parameters at width 1.", choices=("segnet", "fcn"))
    seeds: int = setting(3, "The fewest that show a spread; a seed sets the network and the batches.", least=1)
    steps: int = setting(20_000, "The paper trains 20,000 on NYUv2 with segmentation.", least=1)
    record_every: int = setting(500, "Steps between two evaluations: 20 to 40 points per curve.", least=1)
    alpha: float = setting(1.5, "The paper's, §5.", least=0)
    lr: float = setting(
        2e-5,
        "The networks' learning rate, with Adam, times 0.2 after each 30 % of the steps; the paper starts at 2e-5. 0: "
        "for each method the one that --search found.",
        least=0,
    )
    size: int = setting(
        320, "Height and width of the image, the paper's 320; the ground truth's are a quarter.", least=32
    )
    width: float = setting(1.0, "Factor on all filters; 1 is the paper's network.", above=0)
    batch: int = setting(24, "The paper has 24.", least=1)
    train_images: int = setting(795, "Rooms: any number. NYUv2 has 795 less the validation images.", least=1)
    validation_images: int = setting(
        80,
        "Never trained on; learning rates and best steps are chosen on them. Rooms of their own; of NYUv2, a tenth of "
        "the training images.",
        least=1,
    )
    test_images: int = setting(654, "NYUv2 has 654, rooms any number.", least=1)
    precision: str = setting(
        "32-true", "Lightning's name for the precision.", choices=("32-true", "bf16-mixed", "bf16-true")
    )
    devices: int = setting(1, "GPUs, or processes on a CPU; several train with DDP.", least=1)


class Rates(NamedTuple):
    """Learning rates of a preset."""

    searched: tuple[float, ...]
    """Those that `--search` tries for each method."""
    default: float
    """The rate of methods that were never searched."""


CPU: Mapping[str, Any] = {
    "steps": 1000,
    "size": 64,
    "width": 0.125,
    "batch": 8,
    "lr": 0.0,
    "train_images": 512,
    "validation_images": 128,
    "test_images": 128,
    "record_every": 50,
}
"""For two cores: small images, a narrow network, few steps, and the larger learning rates that few steps need."""
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
        "For two cores, with rooms or with NYUv2; for one GPU; or the paper's.",
        choices=("cpu", "nyuv2", "gpu", "paper"),
    )
    data: str = setting("rooms", "Rendered rooms, or NYUv2 from --root.", choices=("rooms", "nyuv2"))
    image_width: int = setting(0, "Width of the image, where it is not as its height; rooms are square.", least=0)
    root: str = setting("", "NYUv2: its folder, or a file that `gradnorm data nyuv2 --out` wrote.")
    tasks: str = setting("seg", "Segmentation, depth, normals; or depth, normals, keypoints (§5).", choices=tuple(SETS))


NYUV2: Mapping[str, Any] = {
    **CPU,
    "preset": "nyuv2",
    "data": "nyuv2",
    "model": "fcn",
    "size": 96,
    "image_width": 128,
    "width": 0.25,
    "steps": 9000,
    "record_every": 450,
    "train_images": 715,
    "validation_images": 80,
    "test_images": 654,
}
"""For two cores: the small file's own size, all images, and the network whose step costs half of SegNet's. In one run
with equal weights the test loss of depth was lowest at 6,000 steps, while its training loss kept falling."""

VISION_PRESETS = {
    "cpu": VisionConfig(**CPU),
    "nyuv2": VisionConfig(**NYUV2),
    "gpu": VisionConfig(**GPU),
    "paper": VisionConfig(preset="paper"),
}
VISION_RATES = {
    "cpu": Rates((1e-4, 3e-4, 1e-3, 3e-3), default=1e-3),
    "nyuv2": Rates((1e-4, 3e-4, 1e-3, 3e-3), default=1e-3),
    "gpu": Rates((2e-5, 6e-5, 2e-4, 6e-4), default=2e-4),
    "paper": Rates((2e-6, 6e-6, 2e-5, 6e-5, 2e-4), default=2e-5),
}


@dataclass(frozen=True)
class DetectConfig(ImageConfig):
    preset: str = setting("cpu", "For two cores, or for one GPU.", choices=("cpu", "gpu"))


# Objects are learned late: equal weights find hardly any at the steps and the rate of §5's preset.
DETECT_PRESETS = {"cpu": DetectConfig(**{**CPU, "steps": 1500}), "gpu": DetectConfig(**GPU)}
DETECT_RATES = {"cpu": Rates((3e-4, 1e-3, 3e-3, 1e-2), default=3e-3), "gpu": VISION_RATES["gpu"]}
