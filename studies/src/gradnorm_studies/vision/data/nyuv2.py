"""NYUv2 (Silberman et al., ECCV 2012): 795 training and 654 test images of rooms, with classes and depth.

Nothing is downloaded. The user provides one of two forms in a folder, which `NYUv2` detects: the official MATLAB files,
or the preprocessed folders that most multi-task code reads. Both become `Sample`s with the same conventions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations, product
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from gradnorm_studies.engine.study import UsageError
from gradnorm_studies.vision.data.geometry import Camera, normals_from_depth
from gradnorm_studies.vision.data.sample import CLASSES, Sample

Split = Literal["train", "test"]

LABELED, SPLITS, MAPPING = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
DATASETS = {"images": (3, 640, 480), "depths": (640, 480), "rawDepths": (640, 480), "labels": (640, 480)}
"""The datasets that are read from the official file, and their shape per image; MATLAB's axes are reversed."""
NUMBERS = {"train": "trainNdxs", "test": "testNdxs"}
FOLDERS = {"train": "train", "test": "val"}
CHANNELS = {"image": (3,), "label": (), "depth": (1,), "normal": (3,)}
"""The preprocessed folders, and the trailing dimensions of their arrays after height and width."""

TOP, BOTTOM, LEFT, RIGHT = 45, 471, 41, 601
"""The usual crop, which removes the border without projected depth."""

KINECT = Camera(518.85790, 519.46961, 324.58245, 252.73616).cropped(LEFT, TOP)
"""The color camera of the official toolbox (its `camera_params.m`, which counts pixels from 1), cropped."""

# fmt: off
THIRTEEN = (12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5,
            7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7)
# fmt: on
"""Of the 40 classes (Gupta et al.), each one's place among the 13 (Couprie et al.), from 1."""

AXES_IMAGES = 16
"""Images from which the axes of stored normals are determined."""

AGREEMENT = 0.5
"""The least mean cosine between stored normals and those from depth, in the best order and signs of the axes."""


class NYUv2(Dataset[Sample]):
    """One split of NYUv2, with classes, depth and normals.

    The whole view is squeezed into a square. Images are averaged over areas; classes are those of the nearest pixel;
    depth and normals are means over the known pixels of each area, normals then made unit again.

    Args:
        root: Folder with either form; see `docs/data/nyuv2.md`.
        split: "train" (795 images) or "test" (654).
        size: Height and width of the images.
        out: Height and width of the ground truth.

    Raises:
        UsageError: Files are missing, incomplete, damaged, or not what their names say.
        ValueError: Another split.
    """

    def __init__(self, root: str | Path, split: Split, size: int = 320, out: int = 80) -> None:
        if split not in FOLDERS:
            raise ValueError(f'split is {split!r}: give "train" or "test"')
        self._scenes = _find(Path(root), split)
        self._size, self._out = size, out

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Sample:
        return resized(self._scenes[index], self._size, self._out)


def resized(scene: Sample, size: int, out: int) -> Sample:
    """A scene with ground truth in full size → a sample of `size` × `size`, ground truth `out` × `out`."""
    image = F.interpolate(scene.image[None], (size, size), mode="bilinear", antialias=True)[0]
    classes = F.interpolate(scene.segmentation[None, None].float(), (out, out), mode="nearest-exact")[0, 0]
    normals = _mean_of_known(scene.normals, scene.normals.any(0, keepdim=True), out)
    return Sample(
        image=image.clamp(0, 1),
        segmentation=classes.long(),
        depth=_mean_of_known(scene.depth, scene.depth > 0, out),
        normals=F.normalize(normals, dim=0),
    )


def _mean_of_known(values: Tensor, known: Tensor, out: int) -> Tensor:
    """[c, h, w] → [c, out, out]: means over the known pixels of each area; 0 where there are none."""
    total, share = (F.adaptive_avg_pool2d(x, out) for x in (torch.where(known, values, 0), known.float()))
    return torch.where(share > 0, total / share, 0)


class Source(Protocol):
    """One split in one of the two forms: scenes in full size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def _find(root: Path, split: Split) -> Source:
    if (root / LABELED).exists():
        return OfficialScenes(root, split)
    if (root / FOLDERS[split]).is_dir():
        return FolderScenes(root / FOLDERS[split])
    raise _missing(root, f"neither {LABELED} nor the folder {FOLDERS[split]}")


class OfficialScenes:
    """`nyu_depth_v2_labeled.mat`, split by `splits.mat`, its 894 classes made 40 by `classMapping40.mat`, and 13.

    The depth is the in-painted one, as in most published figures. Normals come from it (`normals_from_depth`), and are
    unknown where the sensor saw nothing.
    """

    def __init__(self, root: Path, split: Split) -> None:
        for name in (SPLITS, MAPPING):
            if not (root / name).exists():
                raise _missing(root, f"{LABELED}, but not {name}")
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

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        number = int(self._numbers[index])
        with _reading(self._path), self._open() as file:
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
        with _reading(self._path), self._open() as file:
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

    with _reading(path):
        return loadmat(path, variable_names=[name])[name]


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
                raise _missing(folder.parent, f"in {folder / name}, {len(absent) or 'all'} missing: {some}")
        self._stems = everywhere
        for stem in everywhere:
            self._load(stem, mapped=True)
        self._axes = self._find_axes()

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
            with _reading(path):
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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the file in the error; the readers raise whatever their parsers raise."""
    try:
        yield
    except Exception as error:
        size = path.stat().st_size if path.exists() else 0
        raise UsageError(
            f"{path} cannot be read ({size:,} bytes): it is incomplete, damaged, or another kind of file. Obtain it "
            f"again. ({type(error).__name__}: {error})"
        ) from error


def _missing(root: Path, found: str) -> UsageError:
    listing = sorted(path.name for path in root.iterdir()) if root.is_dir() else None
    holds = "does not exist" if listing is None else f"holds {', '.join(listing[:10]) or 'nothing'}"
    return UsageError(
        f"""NYUv2 is not in {root}: found {found}. The folder {holds}.
This package neither holds nor downloads NYUv2. Put into the folder either
- the official files: {LABELED} (2.8 GB, "Labeled dataset") of the page NYU Depth Dataset V2,
  https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html, with {SPLITS} of the same authors, and {MAPPING},
  which is in the repository ankurhanda/nyuv2-meta-data on GitHub; or
- the preprocessed folders train and val, each with {", ".join(CHANNELS)}, to which the repository lorenmt/mtan on
  GitHub has the link."""
    )
