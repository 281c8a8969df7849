"""MTFL (Zhang et al., ECCV 2014): 10,000 training and 2,995 test faces with five landmarks and four attributes.

Nothing is downloaded. The user gives the official folder, or the file that `prepare` writes from it. The official lists
have no boxes, so the crop is computed from the landmarks; all that is guessed about it stands at `box_of`.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.engine.results import write_whole

Array = NDArray[Any]
Arrays = dict[str, Array]
"""The prepared file's arrays, by `SPLIT_NAME`."""

SIZE = 40
"""Height and width of a crop in pixels."""
POINTS = 5
"""Left eye, right eye, nose, left and right corner of the mouth, as seen in the image."""
ATTRIBUTES = ("gender", "smile", "glasses", "pose")
FRONTAL = 2
"""The pose, 0 … 4 from left to right profile, against which all others are told apart."""

LISTS = {"train": "training.txt", "test": "testing.txt"}
SHAPES: Mapping[str, tuple[int, ...]] = {"image": (SIZE, SIZE), "points": (POINTS, 2), **dict.fromkeys(ATTRIBUTES, ())}
"""The arrays of a split, and their shapes after the number of faces."""
LARGEST = {"gender": 2, "smile": 2, "glasses": 2, "pose": 5}
"""Attributes count from 1 in the official lists: male, female; smiling, not; with glasses, without; poses from left to
right profile."""

SIDE, UP, BEHIND = 5.2, 0.36, 1.5
SCATTER = (0.14, 0.12, 0.06)

SOURCE = "http://mmlab.ie.cuhk.edu.hk/projects/TCDCN.html"
REMEDY = (
    f"MTFL (Zhang et al., ECCV 2014) is at {SOURCE}: unpack it and give its folder as --root, or the file that "
    "`gradnorm data faces --root FOLDER --out FILE` writes from it."
)


@dataclass(frozen=True)
class Faces:
    """Some faces, in memory."""

    images: Tensor
    """[n, 1, 40, 40], each with mean 0 and standard deviation 1."""
    points: Tensor
    """[n, 5, 2], (x, y) of the landmarks; 0 … 1 spans the crop."""
    labels: Tensor
    """[n, 4], int64, by `ATTRIBUTES`: 1 for female, smiling, with glasses, not frontal."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Faces:
        return Faces(self.images[index], self.points[index], self.labels[index])

    @property
    def eye_distances(self) -> Tensor:
        """[n], the distance between the eyes, in units of the crop."""
        return (self.points[:, 0] - self.points[:, 1]).norm(dim=1)


class Part(NamedTuple):
    """A part of the data: what it is, and what was found of it."""

    name: str
    found: str
    is_complete: bool


@lru_cache(maxsize=1)
def load(root: str) -> dict[str, Faces]:
    """The training and the test faces, cached for the next run in this process.

    Raises:
        UsageError: The data are missing, incomplete or damaged.
    """
    require(root)
    arrays = _read_official(Path(root)) if Path(root).is_dir() else _read_prepared(Path(root))
    return {split: _faces({name: arrays[f"{split}_{name}"] for name in SHAPES}) for split in LISTS}


def prepare(root: str | Path, out: str | Path) -> Path:
    """Write the faces of the official folder `root` as crops into the file `out`, by which runs start within a second.

    Raises:
        UsageError: `root` is not the official folder, or files are missing or damaged.
    """
    if Path(root).is_file():
        raise UsageError(f"--root {root} is a file: only the official folder needs preparing. {REMEDY}")
    require(root)
    content = io.BytesIO()
    arrays: dict[str, Any] = _read_official(Path(root))
    np.savez_compressed(content, **arrays)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(out), content.getvalue())
    return Path(out)


def check(root: str | Path) -> list[Part]:
    """What is there of the data and what is missing; of contents, only the lists are read.

    Raises:
        UsageError: A line of a list is not what it should be.
    """
    if not str(root):
        return [Part("--root", "not given", False)]
    path = Path(root)
    if path.is_file():
        return _check_prepared(path)
    if not path.is_dir():
        return [Part(str(path), "there is no such file or folder", False)]
    return [part for name in LISTS.values() for part in _check_list(path, name)]


def require(root: str | Path) -> None:
    """Raise a `UsageError` that says what is missing and where to get it, unless `check` finds everything."""
    missing = [f"{part.name}: {part.found}" for part in check(root) if not part.is_complete]
    if missing:
        raise UsageError(f"The study faces needs data that are not here ({'; '.join(missing)}). {REMEDY}")


def _faces(arrays: Mapping[str, Array]) -> Faces:
    pixels = torch.from_numpy(arrays["image"]).float()[:, None]
    deviation, mean = torch.std_mean(pixels, dim=(2, 3), keepdim=True)
    labels = [*(arrays[name] for name in ATTRIBUTES[:-1]), arrays["pose"] != FRONTAL]
    return Faces(
        images=(pixels - mean) / deviation.clamp_min(1.0),  # of 256 levels; an even image stays 0
        points=torch.from_numpy(arrays["points"]).float(),
        labels=torch.from_numpy(np.stack(labels, axis=1).astype(np.int64)),
    )


# ------------------------------------------------------------------------------------------------- the prepared file


UNREADABLE = (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error)
"""What reading a file raises that is empty, cut off, damaged or something else; TypeError for a single array."""


def _check_prepared(path: Path) -> list[Part]:
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            missing = [key for split in LISTS for name in SHAPES if (key := f"{split}_{name}") not in file.files]
    except UNREADABLE:
        return [Part(str(path), "not a file of arrays (.npz)", False)]
    return [Part(str(path), f"without {', '.join(missing)}" if missing else "complete", not missing)]


def _read_prepared(path: Path) -> Arrays:
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            arrays = {f"{split}_{name}": file[f"{split}_{name}"] for split in LISTS for name in SHAPES}
    except UNREADABLE as error:
        raise UsageError(f"{path} is damaged ({error}): write it again. {REMEDY}") from None
    for split in LISTS:
        n = len(np.atleast_1d(arrays[f"{split}_image"]))
        for name, shape in SHAPES.items():
            _check_array(f"{path}: {split}_{name}", arrays[f"{split}_{name}"], (n, *shape), LARGEST.get(name, 0))
    return arrays


def _check_array(where: str, array: Array, shape: tuple[int, ...], classes: int) -> None:
    if array.shape != shape or not len(array):
        raise UsageError(f"{where} has shape {list(array.shape)}, where {list(shape)} is expected.")
    if not np.isfinite(array).all():
        raise UsageError(f"{where} has values that are not finite.")
    if classes and not np.isin(array, range(classes)).all():
        raise UsageError(f"{where} has the values {array.min()} … {array.max()}, where 0 … {classes - 1} is expected.")


# ----------------------------------------------------------------------------------------------- the official folder


class Entry(NamedTuple):
    """A line of an official list."""

    image: Path
    points: Array
    """[5, 2], in pixels of the image."""
    attributes: dict[str, int]


def _check_list(root: Path, name: str) -> Iterator[Part]:
    if not (root / name).is_file():
        yield Part(str(root / name), "missing", False)
        return
    images = [entry.image for entry in _entries(root, name)]
    missing = [path for path in images if not path.is_file()]
    first = f", the first missing one is {missing[0]}" if missing else ""
    found = f"{len(images) - len(missing):,} of {len(images):,} images{first}"
    yield Part(str(root / name), found, bool(images) and not missing)


def _entries(root: Path, name: str) -> Iterator[Entry]:
    text = (root / name).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _entry(root, f"{root / name}, line {number}", line)


def _entry(root: Path, where: str, line: str) -> Entry:
    """`PATH x1 … x5 y1 … y5 gender smile glasses pose`; the official paths have Windows' separators."""
    path, *fields = line.strip().rsplit(maxsplit=2 * POINTS + len(ATTRIBUTES))
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    if len(values) != 2 * POINTS + len(ATTRIBUTES) or not all(map(math.isfinite, values)):
        raise UsageError(f"{where}: expected a path, {POINTS} x, {POINTS} y, and {', '.join(ATTRIBUTES)}.")
    points = np.array(values[: 2 * POINTS]).reshape(2, POINTS).T
    if not points.std(axis=0).any():
        raise UsageError(f"{where}: all landmarks are at one place.")
    attributes = dict(zip(ATTRIBUTES, values[2 * POINTS :], strict=True))
    for name, value in attributes.items():
        if value not in range(1, LARGEST[name] + 1):
            raise UsageError(f"{where}: {name} is {value:g}, where 1 … {LARGEST[name]} is expected.")
    return Entry(root / path.replace("\\", "/"), points, {name: int(value) for name, value in attributes.items()})


def _read_official(root: Path) -> Arrays:
    arrays: Arrays = {}
    for number, (split, name) in enumerate(LISTS.items()):
        entries = list(_entries(root, name))
        crops = [crop(entry, np.random.default_rng([number, i])) for i, entry in enumerate(entries)]
        arrays[f"{split}_image"] = np.stack([image for image, _ in crops])
        arrays[f"{split}_points"] = np.stack([points for _, points in crops])
        given = {name: np.array([entry.attributes[name] for entry in entries]) for name in ATTRIBUTES}
        codes = {**given, "smile": 3 - given["smile"], "glasses": 3 - given["glasses"]}  # 1 is yes there, no here
        arrays |= {f"{split}_{name}": (values - 1).astype(np.uint8) for name, values in codes.items()}
    return arrays


def crop(entry: Entry, random: np.random.Generator) -> tuple[Array, Array]:
    """A grey crop, uint8 [40, 40], black outside of the image, and the landmarks in it, [5, 2], 0 … 1 across it.

    Raises:
        UsageError: The image cannot be read.
    """
    left, top, side = box_of(entry.points, random)
    # Pillow resizes from a box of fractions only within the image: first cut around it.
    x, y, end = math.floor(left), math.floor(top), math.ceil(side) + 1
    try:
        with Image.open(entry.image) as image:
            cut = image.convert("L").crop((x, y, x + end, y + end))
    except OSError as error:
        raise UsageError(f"{entry.image} cannot be read ({error}): unpack MTFL again.") from None
    box = (left - x, top - y, left - x + side, top - y + side)
    pixels = np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
    return pixels, ((entry.points - (left, top)) / side).astype(np.float32)


def box_of(points: Array, random: np.random.Generator) -> tuple[float, float, float]:
    """Left, top and side of the square that a face detector might give for a face with these landmarks.

    A guess: Zhang et al. crop by a detector's boxes, which MTFL does not have. Lengths are in units of the landmarks'
    root mean square distance from their mean: the side is `SIDE`; the center is `UP` above the mean and, since the nose
    shows to where the head turns, `BEHIND` times the nose's distance from it on the other side. Center and logarithm
    of the side are scattered as a detector's are (`SCATTER`), since a box that follows from the landmarks would give
    them away. The constants were fitted to the boxes of a detector on 12,822 of these faces.
    """
    mean = points.mean(axis=0)
    unit = math.sqrt(((points - mean) ** 2).sum(axis=1).mean())
    shift_x, shift_y, log_scale = random.normal(scale=SCATTER)
    x = mean[0] - BEHIND * (points[2, 0] - mean[0]) + shift_x * unit
    y = mean[1] + (shift_y - UP) * unit
    side = SIDE * unit * math.exp(log_scale)
    return x - side / 2, y - side / 2, side
