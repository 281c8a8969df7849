"""Whole splits of a data set in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from gradnorm_studies.vision.data.nyuv2 import NYUv2
from gradnorm_studies.vision.data.rooms import Rooms
from gradnorm_studies.vision.data.sample import Sample, Split, collate


@dataclass(frozen=True)
class Images:
    """The images of a study: which, how many, how large."""

    data: str
    """"rooms" or "nyuv2"."""
    root: str
    """Where NYUv2 lies."""
    train: int
    validation: int
    test: int
    size: tuple[int, int]
    """Height and width; those of the ground truth are a quarter."""
    style: str = "full"
    """Of rooms."""


@lru_cache(maxsize=3)
def load(images: Images, split: Split) -> Sample:
    """A whole split as one batch in memory, cached for the next run in this process.

    Rooms are rendered on a GPU if there is one: on a CPU the large ones of its preset would take half an hour.

    Raises:
        UsageError: The files of NYUv2 are missing or damaged.
    """
    n, (height, width) = getattr(images, split), images.size
    if images.data == "nyuv2":
        scenes = NYUv2(images.root, split, images.size, (height // 4, width // 4), images.validation)
        return collate([scenes[index] for index in range(min(n, len(scenes)))])
    rooms = Rooms(split, n, size=height, out=height // 4, style=images.style)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = [rooms.batch(range(i, min(i + 64, n)), device).map(lambda values: values.cpu()) for i in range(0, n, 64)]
    return Sample(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})
