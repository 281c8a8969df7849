"""The tasks of §5: head, loss and test metrics of each.

Losses are the paper's: cross entropy, squared error of depth, 1 − cosine of normals, squared error of heatmaps; pixels
without ground truth are ignored. Metrics are the paper's four, and those that today's papers report.
torchmetrics is imported where it is used: its extra is needed by a run, not by the list of studies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies.analysis.metrics import Quantity
from gradnorm_studies.vision.data.geometry import peaks, places
from gradnorm_studies.vision.data.sample import CLASSES, KEYPOINTS, VISIBLE, Sample
from gradnorm_studies.vision.models.dense import Head

if TYPE_CHECKING:
    from torchmetrics import Metric

ERROR = Quantity("mean error")
"""The geometric mean of the tasks' first metrics: halving any of them counts alike, whatever its unit."""

TEST_LOSS = "test loss/"
"""Before a task's name: its loss over all test images, without augmentation."""

ANGLES = (11.25, 22.5, 30.0)
"""Thresholds for the angular error of normals, in degrees."""


class Errors(ABC):
    """A task's metrics, accumulated over batches; lower is better."""

    names: ClassVar[tuple[str, ...]]
    """Names of the figures of `compute`, the paper's own first."""

    def __init__(self, *metrics: Metric) -> None:
        self._metrics = metrics

    def to(self, device: torch.device) -> Errors:
        for metric in self._metrics:
            metric.to(device)
        return self

    @abstractmethod
    def update(self, predicted: Tensor, truth: Sample) -> None:
        """Add a batch: the task's output [B, channels, h, w] or [B, channels], and the ground truth."""

    @abstractmethod
    def compute(self) -> tuple[float, ...]:
        """One figure per name, over all batches."""


class SegmentationErrors(Errors):
    """`100 − mIoU` (§5) and the pixel error, both in percent, over known pixels."""

    names = ("100−mIoU %", "pixel error %")

    def __init__(self) -> None:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

        self._iou = MulticlassJaccardIndex(len(CLASSES), ignore_index=-1)
        self._right = MulticlassAccuracy(len(CLASSES), average="micro", ignore_index=-1)
        super().__init__(self._iou, self._right)

    def update(self, predicted: Tensor, truth: Sample) -> None:
        """[B, 13, h, w] logits."""
        for metric in (self._iou, self._right):
            metric.update(predicted, truth.segmentation)

    def compute(self) -> tuple[float, ...]:
        """From one confusion matrix over the whole set."""
        return tuple(100 * (1 - metric.compute().item()) for metric in (self._iou, self._right))


class DepthErrors(Errors):
    """Root mean square (§5) and mean absolute error in meters, mean relative error in percent, over known pixels."""

    names = ("depth RMS m", "depth abs m", "depth rel %")

    def __init__(self) -> None:
        from torchmetrics import MeanAbsoluteError, MeanAbsolutePercentageError, MeanSquaredError

        self._metrics = (MeanSquaredError(squared=False), MeanAbsoluteError(), MeanAbsolutePercentageError())
        super().__init__(*self._metrics)

    def update(self, predicted: Tensor, truth: Sample) -> None:
        """[B, 1, h, w] meters."""
        known = truth.depth > 0
        for metric in self._metrics:
            metric.update(predicted[known], truth.depth[known])

    def compute(self) -> tuple[float, ...]:
        rms, absolute, relative = (metric.compute().item() for metric in self._metrics)
        return rms, absolute, 100 * relative


class NormalErrors(Errors):
    """`1 − |cos|` (§5); mean and median angular error in degrees, and the shares above `ANGLES` in percent."""

    names = ("1−|cos|", "normals mean °", "normals median °", *(f"normals >{limit:g}° %" for limit in ANGLES))

    def __init__(self) -> None:
        from torchmetrics import CatMetric

        self._cosines = CatMetric()
        super().__init__(self._cosines)

    def update(self, predicted: Tensor, truth: Sample) -> None:
        """[B, 3, h, w] of any length."""
        known = truth.normals.square().sum(1) > 0
        self._cosines.update(F.cosine_similarity(predicted, truth.normals, dim=1)[known])

    def compute(self) -> tuple[float, ...]:
        cosines = self._cosines.compute().clamp(-1, 1)
        angles = torch.rad2deg(torch.acos(cosines))
        beyond = (100 * (angles > limit).double().mean().item() for limit in ANGLES)
        return 1 - cosines.abs().mean().item(), angles.mean().item(), angles.median().item(), *beyond


class KeypointErrors(Errors):
    """Distance of each visible keypoint's predicted maximum from the true one, in percent of the diagonal (§5)."""

    names = ("keypoint error %",)

    def __init__(self) -> None:
        from torchmetrics import CatMetric

        self._distances = CatMetric()
        super().__init__(self._distances)

    def update(self, predicted: Tensor, truth: Sample) -> None:
        """[B, 48, h, w] heatmaps."""
        heatmaps = _heatmaps(truth)
        visible = heatmaps.amax(dim=(2, 3)) > VISIBLE
        found, wanted = (peaks(maps[visible]) for maps in (predicted, heatmaps))
        diagonal = math.hypot(*heatmaps.shape[-2:])
        self._distances.update(100 * (found - wanted).norm(dim=-1) / diagonal)

    def compute(self) -> tuple[float, ...]:
        return (self._distances.compute().mean().item(),)


def _heatmaps(truth: Sample) -> Tensor:
    if truth.keypoints is None:
        raise ValueError("this data set has no keypoints: take the tasks seg, or the data set rooms")
    return truth.keypoints


def _segmentation_loss(predicted: Tensor, truth: Sample) -> Tensor:
    return F.cross_entropy(predicted, truth.segmentation, ignore_index=-1)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """The mean of those that are known, without waiting for a GPU to count them."""
    return torch.where(known, values, 0).sum() / known.sum()


def _depth_loss(predicted: Tensor, truth: Sample) -> Tensor:
    return _mean((predicted - truth.depth).square(), truth.depth > 0)


def _normal_loss(predicted: Tensor, truth: Sample) -> Tensor:
    return 1 - _mean(F.cosine_similarity(predicted, truth.normals, dim=1), truth.normals.square().sum(1) > 0)


def _keypoint_loss(predicted: Tensor, truth: Sample) -> Tensor:
    return (predicted - _heatmaps(truth)).square().mean()


def _drawn_segmentation(predicted: Tensor, _: Sample) -> Mapping[str, Any]:
    return {"segmentation": predicted.argmax(0).tolist()}


def _drawn_depth(predicted: Tensor, _: Sample) -> Mapping[str, Any]:
    return {"depth": predicted[0].tolist()}


def _drawn_normals(predicted: Tensor, _: Sample) -> Mapping[str, Any]:
    return {"normals": F.normalize(predicted, dim=0).movedim(0, -1).tolist()}


def _drawn_keypoints(predicted: Tensor, truth: Sample) -> Mapping[str, Any]:
    return {"keypoints": places(predicted, truth).tolist()}


@dataclass(frozen=True)
class ImageTask:
    """How a task on images is learned and measured; picklable, since it is sent to the processes of DDP."""

    head: Head
    loss: Callable[[Tensor, Sample], Tensor]
    """[B, channels, h, w] in float32 and the ground truth → []."""
    errors: type[Errors]
    drawn: Callable[[Tensor, Sample], Mapping[str, Any]]
    """[channels, h, w] and the ground truth → fields of `drawing.AnnotatedImage`, as plain values."""

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """Its metrics, the paper's own first."""
        return tuple(Quantity(name) for name in self.errors.names)


TASKS: Mapping[str, ImageTask] = {
    "segmentation": ImageTask(Head(len(CLASSES)), _segmentation_loss, SegmentationErrors, _drawn_segmentation),
    "depth": ImageTask(Head(1), _depth_loss, DepthErrors, _drawn_depth),
    "normals": ImageTask(Head(3), _normal_loss, NormalErrors, _drawn_normals),
    "keypoints": ImageTask(Head(KEYPOINTS), _keypoint_loss, KeypointErrors, _drawn_keypoints),
}

SETS: Mapping[str, tuple[str, ...]] = {
    "seg": ("segmentation", "depth", "normals"),
    "kpts": ("depth", "normals", "keypoints"),
}
"""The paper's two sets of tasks, by the names that `--tasks` takes."""
