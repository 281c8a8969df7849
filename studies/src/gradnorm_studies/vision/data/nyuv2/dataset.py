"""NYUv2 as a data set of samples, from any of its forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from torch.utils.data import Dataset

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.vision.data.nyuv2.folders import SPLIT_FOLDERS, FolderScenes
from gradnorm_studies.vision.data.nyuv2.official import LABELED, OfficialScenes
from gradnorm_studies.vision.data.nyuv2.prepared import PreparedScenes
from gradnorm_studies.vision.data.nyuv2.resizing import Size, resized
from gradnorm_studies.vision.data.nyuv2.scenes import OfficialSplit, Scenes, missing
from gradnorm_studies.vision.data.sample import Sample, Split

OFFICIAL = {"train": 795, "test": 654}
"""Images of the official splits."""

VALIDATION_SEED = 0
"""Draws the images for validation: the same in every run."""

BLOCK = 8
"""At most so many neighbors are held out together."""


class NYUv2(Dataset[Sample]):
    """One split of NYUv2, with classes, depth and normals.

    The whole view is resized to the wanted height and width, which squeezes it where these have another ratio. Images
    are averaged over areas; classes are those of the nearest pixel; depth and normals are means over the known pixels
    of each area, normals then made unit again.

    Args:
        root: Folder with the official files or the preprocessed folders, or a prepared file; see `docs/data/nyuv2.md`.
        split: "train" (795 images less `held_out`), "validation" (`held_out`), or "test" (654).
        size: Height and width of the images.
        out: Height and width of the ground truth.
        held_out: Number of the training images that are held out for validation.

    Raises:
        UsageError: Files are missing, incomplete, damaged, or not what their names say; or too few for `held_out`.
        ValueError: Another split.
    """

    def __init__(self, root: str | Path, split: Split, size: Size = 320, out: Size = 80, held_out: int = 0) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}: give one of {', '.join(get_args(Split))}")
        self._scenes = find(Path(root), "test" if split == "test" else "train")
        self._size, self._out = size, out
        self._indices: Sequence[int] = range(len(self._scenes))
        if split != "test":
            held = hold_out(self._scenes.numbers, held_out)
            self._indices = held if split == "validation" else sorted({*self._indices} - {*held})

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return resized(self._scenes[self._indices[index]], self._size, self._out)


def find(root: Path, split: OfficialSplit) -> Scenes:
    """The scenes of "train" or "test", in whichever form they are there."""
    if root.is_file():
        return PreparedScenes(root, split)
    if (root / LABELED).exists():
        return OfficialScenes(root, split)
    if (root / SPLIT_FOLDERS[split]).is_dir():
        return FolderScenes(root / SPLIT_FOLDERS[split])
    raise missing(root, f"neither {LABELED} nor the folder {SPLIT_FOLDERS[split]}")


def hold_out(numbers: Sequence[int], n: int) -> list[int]:
    """Indices of the `n` images for validation, ascending.

    Neighbors in the data set are often frames of one room. So runs of consecutive numbers are drawn whole, long ones
    in blocks of `BLOCK`: an image for validation has hardly a near copy among those for training, and the images for
    validation are of many rooms.

    Args:
        numbers: [N], ascending, the places of the training images in the data set.
        n: How many to hold out.

    Examples:
        >>> hold_out([3, 4, 5, 9, 10, 20], 4)
        [0, 1, 2, 5]
    """
    if n >= len(numbers):
        raise UsageError(
            f"--validation-images is {n}, but there are {len(numbers)} training images: give fewer, to leave some."
        )
    starts = np.flatnonzero(np.diff(numbers) != 1) + 1
    runs = np.split(np.arange(len(numbers)), starts)
    blocks = [run[i : i + BLOCK] for run in runs for i in range(0, len(run), BLOCK)]
    order = np.random.default_rng(VALIDATION_SEED).permutation(len(blocks))
    drawn = [int(index) for block in order for index in blocks[block]]
    return sorted(drawn[:n])
