"""What the forms of NYUv2 have in common: scenes in full size, the usual crop, and errors that name file and remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.vision.data.geometry import Camera
from gradnorm_studies.vision.data.sample import Sample

TOP, BOTTOM, LEFT, RIGHT = 45, 471, 41, 601
"""The usual crop of the 480 × 640 pixels, which removes the border without projected depth."""

FULL_KINECT = Camera(518.85790, 519.46961, 324.58245, 252.73616)
"""The color camera of the official toolbox (its `camera_params.m`, which counts pixels from 1)…"""

KINECT = FULL_KINECT.cropped(LEFT, TOP)
"""…and of the cropped image."""

OFFICIAL = """the official files: nyu_depth_v2_labeled.mat (2.8 GB, "Labeled dataset") of the page NYU Depth Dataset V2,
  https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html, with splits.mat of the same authors, and classMapping40.mat,
  which is in the repository ankurhanda/nyuv2-meta-data on GitHub"""
FOLDERS = """the preprocessed folders train and val, each with image, label, depth, normal, to which the repository
  lorenmt/mtan on GitHub has the link"""


OfficialSplit = Literal["train", "test"]
"""Images for validation are held out of "train"."""


class Scenes(Protocol):
    """One split in one of the forms: scenes in full size, cropped as usual."""

    @property
    def numbers(self) -> Sequence[int]:
        """The place of each scene in the whole data set: neighbors there are often frames of one room."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Names the file in the error; the readers raise whatever their parsers raise."""
    try:
        yield
    except Exception as error:
        size = path.stat().st_size if path.exists() else 0
        raise UsageError(
            f"{path} cannot be read ({size:,} bytes): it is incomplete, damaged, or another kind of file. Obtain it "
            f"again. ({type(error).__name__}: {error})"
        ) from error


def missing(root: Path, found: str) -> UsageError:
    """The error for a place without NYUv2: what was found there, and what to put there."""
    listing = sorted(path.name for path in root.iterdir()) if root.is_dir() else None
    holds = "does not exist" if listing is None else f"holds {', '.join(listing[:10]) or 'nothing'}"
    return UsageError(
        f"""NYUv2 is not in {root}: found {found}. The folder {holds}.
This package neither holds nor downloads NYUv2. Put into the folder either
- {OFFICIAL}; or
- {FOLDERS}."""
    )
