"""The preprocessed folders of NYUv2 that most multi-task code reads."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.vision.data.geometry import normals_from_depth
from gradnorm_studies.vision.data.nyuv2.scenes import BOTTOM, KINECT, LEFT, RIGHT, TOP, missing, reading
from gradnorm_studies.vision.data.sample import CLASSES, Sample

SPLIT_FOLDERS = {"train": "train", "test": "val"}
CHANNELS = {"image": (3,), "label": (), "depth": (1,), "normal": (3,)}
"""The preprocessed folders, and the trailing dimensions of their arrays after height and width."""

AXES_IMAGES = 16
"""Images from which the axes of stored normals are determined."""

AGREEMENT = 0.5
"""The least mean cosine between stored normals and those from depth, in the best order and signs of the axes."""


class FolderScenes:
    """`image`, `label`, `depth`, `normal`, each with 0.npy, 1.npy …, as published with MTAN (Liu et al., CVPR 2019).

    The axes of the stored normals are documented nowhere, so they are determined: of all orders and signs, those that
    agree best with normals from the stored depth.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        numbers = {name: {path.stem for path in (folder / name).glob("*.npy")} for name in CHANNELS}
        everywhere = sorted(set().union(*numbers.values()), key=lambda stem: (len(stem), stem))
        for name, there in numbers.items():
            absent = [stem for stem in everywhere if stem not in there]
            if absent or not everywhere:
                some = ", ".join(f"{stem}.npy" for stem in absent[:5]) or "all files"
                raise missing(folder.parent, f"in {folder / name}, {len(absent) or 'all'} missing: {some}")
        self._stems = everywhere
        for stem in everywhere:
            self._load(stem, mapped=True)
        self._axes = self._find_axes()

    @property
    def numbers(self) -> range:
        """From 0, in the order of the files' names."""
        return range(len(self._stems))

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Sample:
        scene = self._stored(index)
        normals = torch.einsum("ij,jhw->ihw", self._axes, scene.normals)
        return Sample(scene.image, scene.segmentation, scene.depth, F.normalize(normals, dim=0))

    def _stored(self, index: int) -> Sample:
        """As it is in the files, channels first."""
        stem = self._stems[index]
        image, label, depth, normal = (torch.from_numpy(array) for array in self._load(stem).values())
        if label.max() >= len(CLASSES):
            raise UsageError(
                f"{self._folder / 'label' / stem}.npy holds class {label.max():g}, where −1 … 12 is expected: "
                "these seem to be the labels of another set of classes."
            )
        image, depth, normal = (x.movedim(-1, 0).float() for x in (image, depth, normal))
        return Sample(image, label.long(), depth, normal)

    def _load(self, stem: str, mapped: bool = False) -> dict[str, np.ndarray]:
        """The arrays of one image; `mapped` maps them into memory, which validates files without reading them."""
        arrays = {}
        for name, channels in CHANNELS.items():
            path = self._folder / name / f"{stem}.npy"
            with reading(path):
                arrays[name] = np.load(path, mmap_mode="r" if mapped else None)
            expected = (*arrays["image"].shape[:2], *channels)
            if arrays[name].shape != expected:
                raise UsageError(f"{path} has shape {arrays[name].shape}, where {expected} is expected.")
        return arrays

    def _find_axes(self) -> Tensor:
        """[3, 3], the matrix from stored normals to (right, down, forward)."""
        products, known = torch.zeros(3, 3), 0
        for index in range(0, len(self), -(-len(self) // AXES_IMAGES)):
            scene = self._stored(index)
            height, width = scene.depth.shape[-2:]
            camera = KINECT.scaled(width / (RIGHT - LEFT), height / (BOTTOM - TOP))
            expected = normals_from_depth(scene.depth, camera)
            both = expected.any(0) & scene.normals.any(0)
            products += expected[:, both] @ F.normalize(scene.normals[:, both], dim=0).T
            known += int(both.sum())
        signed = (
            torch.diag(torch.tensor(signs))[list(order)]
            for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3))
        )
        best = max(signed, key=lambda axes: float((axes * products).sum()))
        agreement = float((best * products).sum()) / max(known, 1)
        if agreement < AGREEMENT:
            raise UsageError(
                f"{self._folder / 'normal'} does not fit {self._folder / 'depth'}: in no order and signs of the axes "
                f"do the normals agree with the slope of the depth (best mean cosine {agreement:.2f}). Obtain both "
                "again."
            )
        return best
