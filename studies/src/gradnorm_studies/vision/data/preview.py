"""Previews of vision data sets and predictions as images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from gradnorm_studies.vision import drawing
from gradnorm_studies.vision.data.geometry import places
from gradnorm_studies.vision.data.rooms import ROOMS, Rooms
from gradnorm_studies.vision.data.sample import CLASSES, Sample


def contact_sheet(rooms: Rooms, path: Path) -> Path:
    """Write a PNG of these rooms with their ground truth."""
    views = [annotated(rooms[i]) for i in range(len(rooms))]
    titled = [replace(one, title=f"{rooms.split} {i}: {one.kind}") for i, one in enumerate(views)]
    return drawing.contact_sheet(path, titled, CLASSES)


def annotated(sample: Sample) -> drawing.AnnotatedImage:
    """One sample, for drawing, without a title; the sample is on the CPU."""
    real = None if sample.labels is None else sample.labels >= 0
    return drawing.AnnotatedImage(
        title="",
        image=_last(sample.image),
        segmentation=sample.segmentation.numpy(),
        depth=sample.depth[0].numpy(),
        normals=_last(sample.normals),
        keypoints=None if sample.keypoints is None else places(sample.keypoints, sample).numpy(),
        boxes=None if sample.boxes is None else sample.boxes[real].numpy(),
        labels=[] if sample.labels is None else sample.labels[real].tolist(),
        kind="" if sample.room is None else ROOMS[int(sample.room)],
    )


def _last(values: Tensor) -> drawing.Array:
    """[C, H, W] → [H, W, C]."""
    return np.ascontiguousarray(values.permute(1, 2, 0).numpy())
