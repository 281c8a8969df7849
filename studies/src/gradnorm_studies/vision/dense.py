"""§5: several dense tasks on one image, by SegNet or FCN, on rendered rooms or on NYUv2.

The settings and what the paper says are here; the tasks are in `dense.py`, what all studies on images share in
`images.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from gradnorm_studies.engine.settings import setting
from gradnorm_studies.engine.study import Job, UsageError
from gradnorm_studies.vision.study import CPU, GPU, ImageConfig, ImageStudy
from gradnorm_studies.vision.tasks import SETS, TASKS, Task


@dataclass(frozen=True)
class VisionConfig(ImageConfig):
    """The paper's settings; `PRESETS` has smaller ones."""

    data: str = setting("rooms", "Rendered rooms, or NYUv2 from --root.", choices=("rooms", "nyuv2"))
    root: str = setting("", "The folder that holds NYUv2; the page on the data set says what belongs there.")
    tasks: str = setting("seg", "Segmentation, depth, normals; or depth, normals, keypoints (§5).", choices=tuple(SETS))


PRESETS = {"cpu": VisionConfig(**CPU), "gpu": VisionConfig(**GPU), "paper": VisionConfig(preset="paper")}


@dataclass(frozen=True)
class Vision(ImageStudy):
    """The study; see the module."""

    config: VisionConfig = field(default_factory=lambda: PRESETS["cpu"])
    name: ClassVar[str] = "vision"
    config_class: ClassVar[type[VisionConfig]] = VisionConfig
    presets: ClassVar[Mapping[str, VisionConfig]] = PRESETS
    summary: ClassVar[str] = "§5: segmentation, depth, normals, keypoints by SegNet or FCN, on rooms or NYUv2."

    @property
    def problem(self) -> str:
        """Data, tasks, network."""
        return f"{self.config.data}+{self.config.tasks} {self.config.model}"

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Those of the set that was chosen."""
        return {name: TASKS[name] for name in SETS[self.config.tasks]}

    @property
    def data(self) -> tuple[str, str]:
        """As the config has it."""
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
        """Either data set."""
        return "rendered rooms" if self.config.data == "rooms" else "NYUv2"
