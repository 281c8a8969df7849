"""`Rooms`: a data set of furnished rooms, each generated from its index, with ground truth for all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gradnorm import ArgumentError
from gradnorm_studies.vision.data.rooms.furniture import STYLES, draw
from gradnorm_studies.vision.data.rooms.layout import FIRST
from gradnorm_studies.vision.data.rooms.render import Hits, SceneBatch, has_depth, pack, photograph, pixel_rays, trace
from gradnorm_studies.vision.data.rooms.scene import Scene
from gradnorm_studies.vision.data.sample import KEYPOINTS, Sample, Split

BOXES = 24
"""Maximum number of boxes per sample; if there are more objects, the largest."""

LEAST_SHARE = 1 / 400
"""Minimum share of the image for an object to count as visible."""


class Rooms(Dataset[Sample]):
    """Rendered rooms by index: the same index is the same room on every machine, and splits are disjoint.

    Class, depth and normals are those of the ray through the center of each of the out × out cells; the class is known
    everywhere, depth and normals are 0 where a Kinect would have a hole. Keypoints follow `layout.TYPES`.

    Args:
        split: "train", "validation" or "test".
        n: Number of rooms.
        seed: Seed of the rooms.
        size: The image's width and height in pixels.
        out: The ground truth's width and height.
        style: "full", or "sparse" for few and large objects of five classes, as a small detector can learn them.

    Raises:
        ArgumentError: An argument is none of these.

    Example:
        >>> rooms = Rooms("train", n=8, size=32, out=8)
        >>> rooms[0].depth.shape, rooms.batch([0, 1]).image.shape
        (torch.Size([1, 8, 8]), torch.Size([2, 3, 32, 32]))
    """

    def __init__(
        self, split: Split, n: int, seed: int = 0, size: int = 320, out: int = 80, style: str = "full"
    ) -> None:
        if split not in get_args(Split):
            raise ArgumentError(f"split is {split!r}: give one of {', '.join(get_args(Split))}.")
        if style not in STYLES:
            raise ArgumentError(f"style is {style!r}: give one of {', '.join(STYLES)}.")
        for name, value, least in (("n", n, 1), ("seed", seed, 0), ("size", size, 8), ("out", out, 2)):
            if value < least:
                raise ArgumentError(f"{name} is {value}: give a whole number at least {least}.")
        self.split, self.n, self.seed, self.size, self.out, self.style = split, n, seed, size, out, style

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        return self.batch([index]).map(lambda values: values[0])

    def scene(self, index: int) -> Scene:
        """The room behind a sample, as arrays."""
        if not 0 <= index < self.n:
            raise IndexError(f"index is {index}: the set has samples 0 to {self.n - 1}.")
        rng = np.random.default_rng([self.seed, get_args(Split).index(self.split), index])
        return draw(rng, STYLES[self.style])

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Sample:
        """A batch of samples, rendered on a device."""
        return render([self.scene(index) for index in indices], self.size, self.out, device)


@torch.no_grad()
def render(scenes: Sequence[Scene], size: int, out: int, device: torch.device | str = "cpu") -> Sample:
    """Scenes → a batch of samples."""
    batch = pack(scenes, device)
    seen = trace(batch, pixel_rays(batch, size))
    truth = trace(batch, pixel_rays(batch, out))
    known = has_depth(batch, truth).view(-1, 1, out, out)
    camera_normals = (truth.normal @ batch.axes.mT).mT.unflatten(2, (out, out))
    boxes, labels = find_boxes(batch, seen, size)
    return Sample(
        image=photograph(batch, seen, size),
        segmentation=look_up(batch, truth, "label").unflatten(1, (out, out)),
        depth=truth.depth.view(-1, 1, out, out) * known,
        normals=camera_normals * known,
        keypoints=heatmaps(scenes, out).to(device),
        boxes=boxes,
        labels=labels,
        room=torch.tensor([scene.room for scene in scenes], device=device),
    )


def look_up(batch: SceneBatch, hits: Hits, name: str) -> Tensor:
    """[B, R], a field of `PART` at each hit."""
    return batch.parts[name].gather(1, hits.part)


def heatmaps(scenes: Sequence[Scene], out: int) -> Tensor:
    """[B, 48, out, out]: a Gaussian at each keypoint of the layout in view, a fortieth of the image or a cell wide."""
    width = max(1.0, out / 40)
    cells = torch.arange(out) + 0.5
    maps = torch.zeros(len(scenes), KEYPOINTS, out, out)
    for scene, image in zip(scenes, maps, strict=True):
        x, y = torch.from_numpy(scene.view.keypoints * out).float().unbind(1)
        across, down = (torch.exp(-((cells - at[:, None]) ** 2) / (2 * width**2)) for at in (x, y))
        first = FIRST[scene.view.kind]
        image[first : first + len(x)] = down[:, :, None] * across[:, None, :]
    return maps


def find_boxes(batch: SceneBatch, hits: Hits, size: int) -> tuple[Tensor, Tensor]:
    """Boxes [B, M, 4] around what is seen of each object, the largest first, and their classes [B, M]."""
    instances, labels = batch.parts["instance"], batch.parts["label"]
    count = int(instances.max()) + 1
    objects = torch.arange(1, max(count, BOXES + 1), device=instances.device)
    mask = look_up(batch, hits, "instance").view(-1, 1, size, size) == objects[:, None, None]
    area = mask.sum(dim=(2, 3))
    area, order = area.topk(BOXES, dim=1)
    is_visible = area >= LEAST_SHARE * size**2
    columns, rows = mask.any(dim=2), mask.any(dim=3)
    ends = [_first_and_last(line.gather(1, order[..., None].expand(-1, -1, size))) for line in (columns, rows)]
    (left, right), (top, bottom) = ends
    boxes = torch.stack([left, top, right, bottom], dim=2).float() * is_visible[..., None]
    label_of = torch.full((len(labels), len(objects) + 1), -1, device=labels.device).scatter(1, instances, labels)
    return boxes, torch.where(is_visible, label_of.gather(1, order + 1), -1)


def _first_and_last(line: Tensor) -> tuple[Tensor, Tensor]:
    """[…, size] of booleans → the first true place and one after the last."""
    marks = line.byte()
    return marks.argmax(dim=-1), line.shape[-1] - marks.flip(-1).argmax(dim=-1)
