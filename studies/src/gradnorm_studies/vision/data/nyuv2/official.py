"""The official MATLAB files of NYUv2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.vision.data.geometry import normals_from_depth
from gradnorm_studies.vision.data.nyuv2.scenes import BOTTOM, KINECT, LEFT, RIGHT, TOP, OfficialSplit, missing, reading
from gradnorm_studies.vision.data.sample import Sample

LABELED, SPLITS, MAPPING = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
DATASETS = {"images": (3, 640, 480), "depths": (640, 480), "rawDepths": (640, 480), "labels": (640, 480)}
"""The datasets that are read from the official file, and their shape per image; MATLAB's axes are reversed."""
NUMBERS = {"train": "trainNdxs", "test": "testNdxs"}

# fmt: off
THIRTEEN = (12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5,
            7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7)
# fmt: on
"""Of the 40 classes (Gupta et al.), each one's place among the 13 (Couprie et al.), from 1."""


class OfficialScenes:
    """`nyu_depth_v2_labeled.mat`, split by `splits.mat`, its 894 classes made 40 by `classMapping40.mat`, and 13.

    The depth is the in-painted one, as in most published figures. Normals come from it (`normals_from_depth`), and are
    unknown where the sensor saw nothing.
    """

    def __init__(self, root: Path, split: OfficialSplit) -> None:
        for name in (SPLITS, MAPPING):
            if not (root / name).exists():
                raise missing(root, f"{LABELED}, but not {name}")
        self._path = root / LABELED
        self._classes = _class_table(root / MAPPING)
        self._numbers = _matlab(root / SPLITS, NUMBERS[split]).ravel().astype(int) - 1
        count = self._check()
        absent = self._numbers[(self._numbers < 0) | (self._numbers >= count)] + 1
        if len(absent):
            raise UsageError(
                f"{root / SPLITS} names image {absent[0]}, but {self._path} holds {count}: the two do not belong "
                "together, or one is incomplete. Obtain both again."
            )

    @property
    def numbers(self) -> list[int]:
        """From 0, in the order of the file."""
        return self._numbers.tolist()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        number = int(self._numbers[index])
        with reading(self._path), self._open() as file:
            image, depth, raw, labels = (_cropped(file[name][number]) for name in DATASETS)
        if labels.max() >= len(self._classes):
            raise UsageError(f"{self._path}: image {number + 1} has label {labels.max()}, but there are 894 classes.")
        depth = depth[None].float()
        return Sample(
            image=image.float() / 255,
            segmentation=self._classes[labels],
            depth=depth,
            normals=torch.where(raw > 0, normals_from_depth(depth, KINECT), 0),
        )

    def _open(self) -> Any:
        """Opened per image: an open file survives neither pickling nor the fork of a loader's workers."""
        import h5py

        return h5py.File(self._path, "r")

    def _check(self) -> int:
        """The number of images in the file, after validating it."""
        with reading(self._path), self._open() as file:
            shapes = {name: file[name].shape if name in file else None for name in DATASETS}
        count = (shapes["images"] or (0,))[0]
        for name, shape in DATASETS.items():
            if shapes[name] != (count, *shape):
                found = "is missing" if shapes[name] is None else f"has shape {shapes[name]}"
                raise UsageError(
                    f"{self._path}: its dataset {name!r} {found}, where (1449, {', '.join(map(str, shape))}) "
                    f"is expected. This is not the official {LABELED}; obtain it again."
                )
        return count


def _cropped(stored: np.ndarray) -> Tensor:
    """[…, 640, 480] as MATLAB stores it → […, 426, 560], transposed and cropped."""
    values = stored.astype(np.int64) if stored.dtype == np.uint16 else stored  # torch cannot index by uint16
    return torch.from_numpy(values).transpose(-1, -2)[..., TOP:BOTTOM, LEFT:RIGHT]


def _class_table(path: Path) -> Tensor:
    """[895]: the place in `CLASSES` of each official label; −1 for 0, which is unlabeled."""
    forty = _matlab(path, "mapClass").ravel().astype(int)
    if len(forty) != 894 or forty.min() < 1 or forty.max() > 40:
        raise UsageError(f"{path}: 'mapClass' must map 894 classes to 1 … 40, but has {len(forty)} entries.")
    return torch.tensor([-1, *(THIRTEEN[place - 1] - 1 for place in forty)])


def _matlab(path: Path, name: str) -> np.ndarray:
    from scipy.io import loadmat

    with reading(path):
        return loadmat(path, variable_names=[name])[name]
