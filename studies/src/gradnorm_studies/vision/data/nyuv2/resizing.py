"""Resizing of scenes with ground truth of full size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies.vision.data.sample import Sample

Size = int | tuple[int, int]
"""Height and width; one number for a square."""


def resized(scene: Sample, size: Size, out: Size) -> Sample:
    """A scene with ground truth in full size → a sample with an image of `size`, ground truth of `out`."""
    size, out = pair(size), pair(out)
    image = F.interpolate(scene.image[None], size, mode="bilinear", antialias=True)[0]
    classes = F.interpolate(scene.segmentation[None, None].float(), out, mode="nearest-exact")[0, 0]
    normals = _mean_of_known(scene.normals, scene.normals.any(0, keepdim=True), out)
    return Sample(
        image=image.clamp(0, 1),
        segmentation=classes.long(),
        depth=_mean_of_known(scene.depth, scene.depth > 0, out),
        normals=F.normalize(normals, dim=0),
    )


def pair(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def _mean_of_known(values: Tensor, known: Tensor, out: tuple[int, int]) -> Tensor:
    """[c, h, w] → [c, *out]: means over the known pixels of each area; 0 where there are none."""
    total, share = (F.adaptive_avg_pool2d(x, out) for x in (torch.where(known, values, 0), known.float()))
    return torch.where(share > 0, total / share, 0)
