"""NYUv2 as one small file: 96 × 128 pixels, a few dozen megabytes, read in seconds.

The arrays of the file, N images of H × W: `image` uint8 [N, H, W, 3]; `depth_mm` uint16 [N, H, W], 0 unknown;
`label13` uint8 [N, H, W], 255 unknown; `normal` int8 [N, H, W, 3], times `normal_scale`, 0 unknown; `train` and `test`,
indices of the splits; `names13` and `intrinsics`, for people. They show the full view, of which the usual crop is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.vision.data.nyuv2.resizing import resized
from gradnorm_studies.vision.data.nyuv2.scenes import (
    BOTTOM,
    FULL_KINECT,
    LEFT,
    RIGHT,
    TOP,
    OfficialSplit,
    Scenes,
    reading,
)
from gradnorm_studies.vision.data.sample import CLASSES, Sample

FULL = 480, 640
"""Height and width of the official images."""
SMALL = 96, 128
"""Those of a file that is written here."""
UNKNOWN = 255
"""The class of pixels without one."""
NORMAL_SCALE = 127
ARRAYS = {"image": (3,), "depth_mm": (), "label13": (), "normal": (3,)}
"""The arrays that are read per image, and their trailing dimensions after height and width."""


class PreparedScenes:
    """One split of a file that `write` wrote, or of one with the same arrays.

    Raises:
        UsageError: The file cannot be read, or its arrays are not those.
    """

    def __init__(self, path: Path, split: OfficialSplit) -> None:
        with reading(path), np.load(path, allow_pickle=False) as file:
            numbers = file[split]
            arrays = {name: file[name] for name in ARRAYS}
            self._scale = float(file["normal_scale"])
        _check(path, arrays, numbers)
        self.numbers: list[int] = numbers.tolist()
        crop = usual_crop(*arrays["image"].shape[1:3])
        self._arrays = {name: array[numbers][:, *crop] for name, array in arrays.items()}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        image, depth, label, normal = (
            torch.from_numpy(array[index].astype(np.float32)) for array in self._arrays.values()
        )
        return Sample(
            image=image.movedim(-1, 0) / 255,
            segmentation=torch.where(label == UNKNOWN, -1, label).long(),
            depth=depth[None] / 1000,
            normals=F.normalize(normal.movedim(-1, 0) / self._scale, dim=0),
        )


def usual_crop(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the usual crop in a full view of this size.

    Examples:
        >>> usual_crop(96, 128)
        (slice(9, 94, None), slice(8, 120, None))
    """
    down, across = height / FULL[0], width / FULL[1]
    return slice(round(TOP * down), round(BOTTOM * down)), slice(round(LEFT * across), round(RIGHT * across))


def _check(path: Path, arrays: dict[str, np.ndarray], numbers: np.ndarray) -> None:
    count, height, width = (*arrays["image"].shape, 0, 0, 0)[:3]
    for name, channels in ARRAYS.items():
        expected = (count, height, width, *channels)
        if arrays[name].shape != expected:
            raise UsageError(f"{path}: {name!r} has shape {arrays[name].shape}, where {expected} is expected.")
    if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= count:
        raise UsageError(f"{path}: its splits name images that it does not hold ({count}). Write or obtain it again.")
    known = arrays["label13"][arrays["label13"] != UNKNOWN]
    if known.size and known.max() >= len(CLASSES):
        raise UsageError(f"{path}: 'label13' holds class {known.max()}, where 0 … 12 or {UNKNOWN} is expected.")


def write(
    path: Path, splits: dict[str, Scenes], advance: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write the scenes of "train" and "test" as a prepared file.

    Scenes come cropped: outside of the usual crop the file's full view is unknown.

    Args:
        path: The file.
        splits: The scenes by split.
        advance: Called as `(done, total)` after each image.
    """
    numbers = _numbers(splits)
    count = 1 + max(max(each) for each in numbers.values())
    arrays = _blank(count)
    done, total = 0, sum(map(len, splits.values()))
    for split, scenes in splits.items():
        for index, number in enumerate(numbers[split]):
            _fill(arrays, number, scenes[index])
            done += 1
            advance(done, total)
    facts = {"normal_scale": np.array(NORMAL_SCALE), "names13": np.array(CLASSES), "intrinsics": _intrinsics()}
    content: dict[str, Any] = {**arrays, **facts, **{split: np.array(each) for split, each in numbers.items()}}
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, **content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _numbers(splits: dict[str, Scenes]) -> dict[str, list[int]]:
    """The places of the scenes in the file: their own, or one split after the other where those are the same."""
    own = {split: [*scenes.numbers] for split, scenes in splits.items()}
    train, test = own["train"], own["test"]
    if {*train} & {*test}:
        return {"train": train, "test": [1 + max(train) + number for number in test]}
    return own


def _blank(count: int) -> dict[str, Any]:
    """Arrays in which nothing is known."""
    return {
        "image": np.zeros((count, *SMALL, 3), np.uint8),
        "depth_mm": np.zeros((count, *SMALL), np.uint16),
        "label13": np.full((count, *SMALL), UNKNOWN, np.uint8),
        "normal": np.zeros((count, *SMALL, 3), np.int8),
    }


def _fill(arrays: dict[str, np.ndarray], number: int, scene: Sample) -> None:
    rows, columns = usual_crop(*SMALL)
    size = rows.stop - rows.start, columns.stop - columns.start
    small = resized(scene, size, size)
    at = number, rows, columns
    arrays["image"][at] = (small.image * 255).round().movedim(0, -1).numpy()
    arrays["depth_mm"][at] = (small.depth[0] * 1000).round().clamp(0, 65_535).numpy()
    arrays["label13"][at] = torch.where(small.segmentation < 0, UNKNOWN, small.segmentation).numpy()
    arrays["normal"][at] = (small.normals * NORMAL_SCALE).round().movedim(0, -1).numpy()


def _intrinsics() -> np.ndarray:
    return np.array([FULL_KINECT.fx, FULL_KINECT.fy, FULL_KINECT.cx, FULL_KINECT.cy])
