"""Image classification, object detection and segmentation by one network: what mixed perception models train.

The losses are of unlike kind: a cross entropy an image, a sum over an object's parts, a cross entropy a pixel. The
classifier reads what the encoder gives, detection and segmentation what the decoder makes of it; so `W` is the
encoder's last layer, the last that all three share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from gradnorm_studies.engine.settings import setting
from gradnorm_studies.vision.detection import CLASSIFICATION, DETECTION
from gradnorm_studies.vision.study import CPU, GPU, ImageConfig, ImageStudy
from gradnorm_studies.vision.tasks import TASKS, Task


@dataclass(frozen=True)
class DetectConfig(ImageConfig):
    """Those of §5."""

    preset: str = setting("cpu", "For two cores, or for one GPU.", choices=("cpu", "gpu"))


# Objects are learned late: equal weights find hardly any at the steps and the rate of §5's preset.
PRESETS = {"cpu": DetectConfig(**{**CPU, "steps": 1500, "lr": 3e-3}), "gpu": DetectConfig(**GPU)}


@dataclass(frozen=True)
class Detect(ImageStudy):
    """The study; see the module."""

    config: DetectConfig = field(default_factory=lambda: PRESETS["cpu"])
    name: ClassVar[str] = "detect"
    config_class: ClassVar[type[DetectConfig]] = DetectConfig
    presets: ClassVar[Mapping[str, DetectConfig]] = PRESETS
    summary: ClassVar[str] = "Classification, detection and segmentation by SegNet or FCN, on rooms."
    is_papers: ClassVar[bool] = False

    @property
    def problem(self) -> str:
        """The network is all that differs."""
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
        """The only data."""
        return "rendered rooms"
