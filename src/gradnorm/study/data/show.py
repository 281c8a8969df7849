"""A contact sheet of a vision data set: what a person looks at before a network does."""

from __future__ import annotations

from pathlib import Path

import torch

from gradnorm import plots
from gradnorm.study.data.rooms import ROOMS, Rooms
from gradnorm.study.data.sample import CLASSES, Sample


def contact_sheet(rooms: Rooms, path: Path) -> Path:
    """All of these rooms with their truth, as a PNG."""
    views = [_view(rooms[i], f"{rooms.split} {i}") for i in range(len(rooms))]
    return plots.contact_sheet(path, views, CLASSES)


def _view(sample: Sample, title: str) -> plots.View:
    assert sample.keypoints is not None
    assert sample.boxes is not None
    assert sample.labels is not None
    assert sample.room is not None
    maps = sample.keypoints.flatten(1)
    places = maps.argmax(dim=1)[maps.amax(dim=1) > 0.3]
    cells = torch.stack([places % sample.depth.shape[-1], places // sample.depth.shape[-1]], dim=1) + 0.5
    real = sample.labels >= 0
    return plots.View(
        title=f"{title}: {ROOMS[int(sample.room)]}",
        image=sample.image.permute(1, 2, 0).numpy(),
        classes=sample.segmentation.numpy(),
        depth=sample.depth[0].numpy(),
        normals=sample.normals.permute(1, 2, 0).numpy(),
        keypoints=(cells * sample.image.shape[-1] / sample.depth.shape[-1]).numpy(),
        boxes=sample.boxes[real].numpy(),
        labels=sample.labels[real].tolist(),
    )
