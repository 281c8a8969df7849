"""The sample format of all vision data sets: an image, and the ground truth for each task.

The image is H × W, the ground truth h × w (a quarter of it each way in the paper). A batch is a `Sample` too, each
tensor with a leading batch dimension. Unknown pixels are marked in the ground truth: class −1, depth 0, normal zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

Split = Literal["train", "test", "validation"]
"""Trained on, reported on, and whatever is chosen is chosen on; in the order in which rooms are seeded."""

CLASSES = (
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "tv",
    "wall",
    "window",
)
"""NYUv2's 13 classes, in its order."""

KEYPOINTS = 48
"""Number of room-layout keypoints over all layout types (§5)."""

VISIBLE = 0.5
"""A keypoint is in the image if its heatmap exceeds this."""


@dataclass(frozen=True)
class Sample:
    """One image or a batch, with the ground truth for each task."""

    image: Tensor
    """[3, H, W] float32 in 0 … 1."""
    segmentation: Tensor
    """[h, w] int64: an index of `CLASSES`; −1 unknown."""
    depth: Tensor
    """[1, h, w] float32 in meters along the optical axis; 0 unknown."""
    normals: Tensor
    """[3, h, w] float32 unit vectors, camera coordinates (x right, y down, z forward), facing it; 0 unknown."""
    keypoints: Tensor | None = None
    """[48, h, w] float32 heatmaps in 0 … 1: one Gaussian per visible keypoint of this room's layout type."""
    boxes: Tensor | None = None
    """[M, 4] float32: left, top, right, bottom in pixels of the image; padding rows are 0."""
    labels: Tensor | None = None
    """[M] int64: each box's index of `CLASSES`; −1 for padding."""
    room: Tensor | None = None
    """[] int64: the kind of room."""

    def map(self, change: Callable[..., Tensor], *others: Sample) -> Sample:
        """Apply a function to every tensor that is present, with those of others that have the same.

        Examples:
            >>> one = Sample(torch.zeros(3, 8, 8), torch.zeros(2, 2).long(), torch.ones(1, 2, 2), torch.zeros(3, 2, 2))
            >>> one.map(lambda values: values[None]).depth.shape
            torch.Size([1, 1, 2, 2])
        """
        columns = {f.name: [getattr(sample, f.name) for sample in (self, *others)] for f in fields(self)}
        changed: dict[str, Any] = {name: None if v[0] is None else change(*v) for name, v in columns.items()}
        return Sample(**changed)


def collate(samples: Sequence[Sample]) -> Sample:
    """Collate samples of the same sizes into one batch.

    Examples:
        >>> one = Sample(torch.zeros(3, 8, 8), torch.zeros(2, 2).long(), torch.ones(1, 2, 2), torch.zeros(3, 2, 2))
        >>> collate([one, one]).depth.shape
        torch.Size([2, 1, 2, 2])
    """
    return samples[0].map(lambda *values: torch.stack(values), *samples[1:])
