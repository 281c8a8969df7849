"""Augmentations that transform image and ground truth together; for one sample or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies.vision.data.rooms.layout import MIRROR
from gradnorm_studies.vision.data.sample import Sample

FACTORS = (1.0, 1.2, 1.5)
"""The usual scales for NYUv2."""
DRAWS = 4
"""Random numbers that a sample takes."""


def augment(batch: Sample, draws: Tensor) -> Sample:
    """Random scale from `FACTORS`, random crop, and a horizontal flip with probability ½, per sample.

    Args:
        batch: A batch, on any device.
        draws: [B, DRAWS], uniform numbers in [0, 1), on the CPU.
    """
    factors = draws.new_tensor(FACTORS)[(draws[:, 0] * len(FACTORS)).long()]
    kept = scale(batch, factors, draws[:, 2:])
    mirrored = (draws[:, 1] < 0.5).to(batch.image.device)
    return kept.map(lambda old, new: torch.where(mirrored.view(-1, *[1] * (old.dim() - 1)), new, old), flip(kept))


def flip(sample: Sample) -> Sample:
    """Horizontal flip: x of the normals changes sign, and each layout keypoint takes its mirrored channel.

    Examples:
        >>> one = Sample(torch.rand(3, 8, 8), torch.zeros(2, 2).long(), torch.ones(1, 2, 2), torch.ones(3, 2, 2))
        >>> flip(one).normals[:, 0, 0]
        tensor([-1.,  1.,  1.])
    """
    sign = torch.tensor([-1.0, 1.0, 1.0], device=sample.normals.device)[:, None, None]
    return replace(
        sample,
        image=sample.image.flip(-1),
        segmentation=sample.segmentation.flip(-1),
        depth=sample.depth.flip(-1),
        normals=sample.normals.flip(-1) * sign,
        keypoints=None if sample.keypoints is None else _flip_keypoints(sample.keypoints),
        boxes=None if sample.boxes is None else _flip_boxes(sample.boxes, sample.image.shape[-1]),
    )


def _flip_keypoints(maps: Tensor) -> Tensor:
    return maps.flip(-1).index_select(-3, MIRROR.to(maps.device))


def _flip_boxes(boxes: Tensor, width: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(-1)
    flipped = torch.stack([width - right, top, width - left, bottom], dim=-1)
    return torch.where((right > left)[..., None], flipped, boxes)  # padding stays 0


def scale(sample: Sample, factor: float | Tensor, corner: Sequence[float] | Tensor) -> Sample:
    """A crop resized to the full size: the view of the same camera of a scene moved closer.

    Depth is divided by the factor. This steepens all slopes, so the normals' z is multiplied by the factor, and they
    are normalized again. (Multi-task code often leaves them unchanged, which is right only for surfaces that face the
    camera.) Classes, depth and normals are sampled nearest; image and heatmaps are interpolated. Boxes are clipped to
    the crop; boxes and keypoints outside it are removed. No keypoints are added where a layout's edges leave the crop.

    Args:
        sample: One sample, or a batch.
        factor: Scale, at least 1; of a batch, also [B].
        corner: Position of the crop: (0, 0) is the upper left, (1, 0) the upper right, (1, 1) the lower right; of a
            batch, also [B, 2].

    Raises:
        ValueError: `factor` is below 1, or `corner` outside 0 … 1.

    Examples:
        >>> one = Sample(torch.rand(3, 8, 8), torch.zeros(2, 2).long(), torch.ones(1, 2, 2), torch.zeros(3, 2, 2))
        >>> scale(one, 2.0, corner=(0.5, 0.5)).depth
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """
    if sample.image.dim() == 3:
        return scale(sample.map(lambda values: values[None]), factor, corner).map(lambda values: values[0])
    factors, corners = torch.as_tensor(factor), torch.as_tensor(corner)
    if not (factors >= 1).all():
        raise ValueError(f"factor is {factor}: give at least 1, since nothing is known beyond the border")
    if not ((corners >= 0) & (corners <= 1)).all():
        raise ValueError(f"corner is {corner}: give two places between 0 and 1")
    count = len(sample.image)  # checked above, so that nothing waits for a GPU
    factors, corners = factors.to(sample.image).expand(count), corners.to(sample.image).expand(count, 2)
    shown = 1 / factors[:, None]
    views = torch.cat([torch.diag_embed(shown.expand(-1, 2)), ((2 * corners - 1) * (1 - shown))[..., None]], dim=-1)

    def seen(values: Tensor, mode: str) -> Tensor:
        grid = F.affine_grid(views, list(values.shape), align_corners=False)
        return F.grid_sample(values, grid, mode, padding_mode="border", align_corners=False)

    deeper = torch.stack([torch.ones_like(factors), torch.ones_like(factors), factors], dim=-1)[..., None, None]
    changed = replace(
        sample,
        image=seen(sample.image, "bilinear"),
        segmentation=seen(sample.segmentation[:, None].float(), "nearest")[:, 0].long(),
        depth=seen(sample.depth, "nearest") * shown[..., None, None],
        normals=F.normalize(seen(sample.normals, "nearest") * deeper, dim=-3),
        keypoints=None if sample.keypoints is None else seen(sample.keypoints, "bilinear"),
    )
    return changed if changed.boxes is None else _scale_boxes(changed, factors, corners * (1 - shown))


def _scale_boxes(batch: Sample, factors: Tensor, starts: Tensor) -> Sample:
    """Boxes under factors [B], where the crops start at [B, 2]."""
    assert batch.boxes is not None
    size = batch.boxes.new_tensor(batch.image.shape[:-3:-1]).repeat(2)
    corners = (batch.boxes - (starts.repeat(1, 2) * size)[:, None]) * factors[:, None, None]
    boxes = corners.clamp(min=0).minimum(size)
    seen = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    order = (~seen).sort(dim=-1, stable=True).indices
    boxes = torch.where(seen[..., None], boxes, 0).gather(-2, order[..., None].expand_as(boxes))
    labels = None if batch.labels is None else torch.where(seen, batch.labels, -1).gather(-1, order)
    return replace(batch, boxes=boxes, labels=labels)
