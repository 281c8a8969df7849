"""Augmentations that transform image and ground truth together; for one sample or a batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies.vision.data.rooms.layout import MIRROR
from gradnorm_studies.vision.data.sample import Sample, collate

FACTORS = (1.0, 1.2, 1.5)
"""The usual scales for NYUv2."""


def augment(batch: Sample, generator: torch.Generator) -> Sample:
    """Random scale from `FACTORS`, random crop, and a horizontal flip with probability ½, per sample.

    Args:
        batch: A batch, on any device.
        generator: A CPU generator; advances by four numbers per sample.
    """
    changed = []
    for index, draws in enumerate(torch.rand(len(batch.image), 4, generator=generator).tolist()):
        sample = batch.map(lambda values: values[index])  # noqa: B023 - called at once
        factor, mirrored = FACTORS[int(draws[0] * len(FACTORS))], draws[1] < 0.5
        if factor > 1:
            sample = scale(sample, factor, corner=(draws[2], draws[3]))
        changed.append(flip(sample) if mirrored else sample)
    return collate(changed)


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


def scale(sample: Sample, factor: float, corner: tuple[float, float]) -> Sample:
    """A crop resized to the full size: the view of the same camera of a scene moved closer.

    Depth is divided by the factor. This steepens all slopes, so the normals' z is multiplied by the factor, and they
    are normalized again. (Multi-task code often leaves them unchanged, which is right only for surfaces that face the
    camera.) Classes, depth and normals are sampled nearest; image and heatmaps are interpolated. Boxes are clipped to
    the crop; boxes and keypoints outside it are removed. No keypoints are added where a layout's edges leave the crop.

    Args:
        sample: One sample, or a batch.
        factor: Scale, at least 1.
        corner: Position of the crop: (0, 0) is the upper left, (1, 0) the upper right, (1, 1) the lower right.

    Raises:
        ValueError: `factor` is below 1, or `corner` outside 0 … 1.

    Examples:
        >>> one = Sample(torch.rand(3, 8, 8), torch.zeros(2, 2).long(), torch.ones(1, 2, 2), torch.zeros(3, 2, 2))
        >>> scale(one, 2.0, corner=(0.5, 0.5)).depth
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """
    if not factor >= 1:
        raise ValueError(f"factor is {factor}: give at least 1, since nothing is known beyond the border")
    if not all(0 <= place <= 1 for place in corner):
        raise ValueError(f"corner is {corner}: give two places between 0 and 1")
    left, top = (place * (1 - 1 / factor) for place in corner)

    def nearest(values: Tensor) -> Tensor:
        for dim, start in ((-2, top), (-1, left)):
            values = values.index_select(dim, _places(values, dim, factor, start).round().long())
        return values

    def linear(values: Tensor) -> Tensor:
        for dim, start in ((-2, top), (-1, left)):
            at = _places(values, dim, factor, start)
            share = (at % 1).view(-1, *[1] * (-1 - dim))
            low, high = (values.index_select(dim, end.long()) for end in (at.floor(), at.ceil()))
            values = torch.lerp(low, high, share)
        return values

    deeper = torch.tensor([1.0, 1.0, factor], device=sample.normals.device)[:, None, None]
    changed = replace(
        sample,
        image=linear(sample.image),
        segmentation=nearest(sample.segmentation),
        depth=nearest(sample.depth) / factor,
        normals=F.normalize(nearest(sample.normals) * deeper, dim=-3),
        keypoints=None if sample.keypoints is None else linear(sample.keypoints),
    )
    return changed if changed.boxes is None else _scale_boxes(changed, factor, (left, top))


def _places(values: Tensor, dim: int, factor: float, start: float) -> Tensor:
    """Where along `dim` each new pixel's center was, in pixels."""
    count = values.shape[dim]
    centers = (torch.arange(count, device=values.device) + 0.5) / factor + start * count
    return (centers - 0.5).clamp(0, count - 1)


def _scale_boxes(sample: Sample, factor: float, start: tuple[float, float]) -> Sample:
    assert sample.boxes is not None
    size = sample.boxes.new_tensor(sample.image.shape[:-3:-1]).repeat(2)
    boxes = ((sample.boxes - sample.boxes.new_tensor(start).repeat(2) * size) * factor).clamp(min=0).minimum(size)
    seen = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    order = (~seen).sort(dim=-1, stable=True).indices
    boxes = torch.where(seen[..., None], boxes, 0).gather(-2, order[..., None].expand_as(boxes))
    labels = None if sample.labels is None else torch.where(seen, sample.labels, -1).gather(-1, order)
    return replace(sample, boxes=boxes, labels=labels)
