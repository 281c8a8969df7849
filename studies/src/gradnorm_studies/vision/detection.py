"""Image classification and object detection.

Detection is by centers (CenterNet, Zhou et al., 2019), so that a dense network can have it beside other tasks: a
heatmap per class, and four more channels for the center's offset within its cell and the size of the box. Average
precision is computed by pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies.vision.data.rooms import ROOMS
from gradnorm_studies.vision.data.sample import CLASSES, Sample
from gradnorm_studies.vision.models.dense import Head
from gradnorm_studies.vision.tasks import Errors, ImageTask

HEATMAPS = len(CLASSES)
"""Channels of the heatmaps; two follow for the center's offset within its cell, and two for the box's log size."""
SPREAD = 0.54 / 6
"""Standard deviation of a center's Gaussian, as a share of the box's sides (Liu et al., TTFNet, 2020)…"""
NARROWEST = 0.25
"""…and at least this many cells."""
PRIOR = -2.19
"""Bias of the heatmaps' logits: every cell starts as an object's center with probability 0.1 (Lin et al., 2017)."""
MAX_DETECTIONS = 50
"""Maximum number of detections per image."""
SCORE_THRESHOLD = 0.3
"""Score threshold for drawing detections."""


# ------------------------------------------------------------------------------------------------- classification


def _kind_loss(predicted: Tensor, truth: Sample) -> Tensor:
    assert truth.room is not None
    return F.cross_entropy(predicted, truth.room)


class KindErrors(Errors):
    """The classification error over kinds of room, in percent."""

    names = ("classification error %",)

    def __init__(self) -> None:
        from torchmetrics.classification import MulticlassAccuracy

        self._right = MulticlassAccuracy(len(ROOMS), average="micro")
        super().__init__(self._right)

    def update(self, predicted: Tensor, truth: Sample) -> None:
        """[B, kinds] logits."""
        assert truth.room is not None
        self._right.update(predicted, truth.room)

    def compute(self) -> tuple[float, ...]:
        return (100 * (1 - self._right.compute().item()),)


# ------------------------------------------------------------------------------------------------------ detection


def detection_loss(predicted: Tensor, truth: Sample) -> Tensor:
    """Focal loss of the heatmaps, L1 losses of offsets and log sizes, per object (Zhou et al., eqs. 1–4).

    Args:
        predicted: [B, 13 + 4, h, w].
        truth: The ground truth, with boxes and labels.
    """
    assert truth.boxes is not None
    assert truth.labels is not None
    image, number = (truth.labels >= 0).nonzero(as_tuple=True)
    boxes, labels = _in_cells(truth.boxes[image, number], predicted, truth), truth.labels[image, number]
    centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    cells = centers.long()
    objects = max(1, len(labels))
    wanted = _heatmaps(predicted[:, :HEATMAPS], image, labels, cells, sizes)
    found = predicted[image, HEATMAPS:, cells[:, 1], cells[:, 0]]
    places = (found[:, :2] - (centers - cells)).abs().sum()
    extents = (found[:, 2:] - sizes.log()).abs().sum()
    return (_focal(predicted[:, :HEATMAPS] + PRIOR, wanted) + places + extents) / objects


def _in_cells(boxes: Tensor, predicted: Tensor, truth: Sample) -> Tensor:
    """From pixels of the image to cells of the map."""
    return boxes * (predicted.shape[-1] / truth.image.shape[-1])


def _heatmaps(like: Tensor, image: Tensor, labels: Tensor, cells: Tensor, sizes: Tensor) -> Tensor:
    """Target heatmaps, as `like`, [B, 13, h, w]: a Gaussian of height 1 per object, the maximum where they overlap."""
    height, width = like.shape[-2:]
    down, across = (torch.arange(n, device=like.device) for n in (height, width))
    widths = (SPREAD * sizes).clamp(min=NARROWEST)
    x, y = (
        torch.exp(-((line - cells[:, i, None]) ** 2) / (2 * widths[:, i, None] ** 2))
        for i, line in enumerate((across, down))
    )
    flat = like.new_zeros(like.shape[0] * HEATMAPS, height * width)
    places = (image * HEATMAPS + labels)[:, None].expand(-1, height * width)
    bumps = (y[:, :, None] * x[:, None, :]).flatten(1).to(like.dtype)
    return flat.scatter_reduce(0, places, bumps, "amax").view_as(like)


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """The focal loss summed over all cells, with reduced cost near a center."""
    chance = logits.sigmoid()
    hits = (1 - chance) ** 2 * F.logsigmoid(logits)
    alarms = (1 - wanted) ** 4 * chance**2 * F.logsigmoid(-logits)
    return -torch.where(wanted == 1, hits, alarms).sum()


def detect(predicted: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `MAX_DETECTIONS` detections of each image with the highest scores.

    Args:
        predicted: [B, 13 + 4, h, w].
        side: Height and width of the image in pixels.

    Returns:
        Boxes [B, n, 4] in pixels, labels [B, n], scores [B, n] in 0 … 1, the best first.
    """
    chance = (predicted[:, :HEATMAPS] + PRIOR).sigmoid()
    peaks = torch.where(chance == F.max_pool2d(chance, 3, stride=1, padding=1), chance, 0).flatten(1)
    scores, at = peaks.topk(min(MAX_DETECTIONS, peaks.shape[1]))
    height, width = predicted.shape[-2:]
    labels, cells = at // (height * width), at % (height * width)
    found = predicted[:, HEATMAPS:].flatten(2).gather(2, cells[:, None].expand(-1, 4, -1)).mT
    centers = torch.stack([cells % width, cells // width], dim=2) + found[..., :2]
    halves = found[..., 2:].clamp(max=10).exp() / 2  # of a map that has not learned yet, finite
    boxes = torch.cat([centers - halves, centers + halves], dim=2) * (side / width)
    return boxes.clamp(0, side), labels, scores


class DetectionErrors(Errors):
    """100 − AP50 (average precision at IoU 0.5), and 100 − AP (over IoU 0.5 to 0.95), in percent."""

    names = ("100−AP50 %", "100−AP %")

    def __init__(self) -> None:
        super().__init__()
        self._truths: list[dict[str, Any]] = []
        self._found: list[Tensor] = []

    def update(self, predicted: Tensor, truth: Sample) -> None:
        """[B, 13 + 4, h, w]."""
        assert truth.boxes is not None
        assert truth.labels is not None
        for boxes, labels, scores in zip(*detect(predicted, truth.image.shape[-1]), strict=True):
            image = torch.full_like(scores, len(self._found))
            self._found.append(torch.column_stack([image, _from_corner(boxes), scores, labels]).cpu())
        first = len(self._found) - len(truth.boxes)
        for place, number in (truth.labels >= 0).nonzero().tolist():
            left, top, width, height = _from_corner(truth.boxes[place, number]).tolist()
            self._truths.append(
                {
                    "id": len(self._truths) + 1,
                    "image_id": first + place,
                    "category_id": int(truth.labels[place, number]),
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )

    def compute(self) -> tuple[float, ...]:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        truths: Any = COCO()
        truths.dataset = {
            "images": [{"id": image} for image in range(len(self._found))],
            "annotations": self._truths,
            "categories": [{"id": label} for label in range(len(CLASSES))],
        }
        with redirect_stdout(StringIO()):  # pycocotools prints each stage
            truths.createIndex()
            scoring = COCOeval(truths, truths.loadRes(torch.cat(self._found).double().numpy()), "bbox")
            scoring.evaluate()
            scoring.accumulate()
            scoring.summarize()
        overall, half = (max(0.0, float(precision)) for precision in scoring.stats[:2])  # −1 without any object
        return 100 * (1 - half), 100 * (1 - overall)


def _from_corner(boxes: Tensor) -> Tensor:
    """Left, top, right, bottom → left, top, width, height, [..., 4]."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def _drawn_boxes(predicted: Tensor, truth: Sample) -> Mapping[str, Any]:
    (boxes,), (labels,), (scores,) = detect(predicted[None], truth.image.shape[-1])
    sure = scores > SCORE_THRESHOLD
    return {"boxes": boxes[sure].tolist(), "labels": labels[sure].tolist()}


def _drawn_kind(predicted: Tensor, _: Sample) -> Mapping[str, Any]:
    return {"kind": ROOMS[int(predicted.argmax())]}


CLASSIFICATION = ImageTask(Head(len(ROOMS), whole=True), _kind_loss, KindErrors, _drawn_kind)
DETECTION = ImageTask(Head(HEATMAPS + 4, hidden=64), detection_loss, DetectionErrors, _drawn_boxes)
