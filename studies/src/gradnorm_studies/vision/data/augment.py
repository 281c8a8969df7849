"""Changes of a sample that keep image and truth in step; for one sample or a batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies.vision.data.rooms.layout import MIRROR
from gradnorm_studies.vision.data.sample import Sample, collate

FACTORS = (1.0, 1.2, 1.5)
"""The scales usual for NYUv2."""


def augment(batch: Sample, generator: torch.Generator) -> Sample:
    """Each sample at a scale drawn from `FACTORS`, from any part of the view, and one in two mirrored.

    Args:
        batch: On any device.
        generator: On the CPU; advances by four numbers a sample.
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
    """The mirror image: x of the normals changes sign, and each layout keypoint takes its mirrored name.

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
    """A part of the view, as large as the whole was: what the same camera sees of a scene drawn up to it.

    Depth is divided by the factor. A scene pressed together so slopes more, so the normals' z is multiplied by it, and
    they are made unit again. (Multi-task code often leaves them as they are, which is right only for what faces the
    camera.) Classes, depth and normals are those of the nearest pixel; image and heatmaps are interpolated. Boxes are
    cut to the view; those outside it are gone, as are keypoints. Where a layout's edges leave the new view, no
    keypoints are found anew.

    Args:
        sample: One, or a batch.
        factor: At least 1.
        corner: Where the part lies: (0, 0) at the upper left, (1, 0) at the upper right, (1, 1) at the lower right.

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
