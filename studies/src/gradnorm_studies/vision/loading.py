"""Whole splits of a data set in memory."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch

from gradnorm_studies.vision.data.nyuv2 import NYUv2
from gradnorm_studies.vision.data.rooms import Rooms
from gradnorm_studies.vision.data.sample import Sample, collate


@lru_cache(maxsize=2)
def load(data: str, root: str, split: Literal["train", "test"], n: int, size: int) -> Sample:
    """A whole split as one batch in memory, cached for the next run in this process.

    Rooms are rendered on a GPU if there is one: on a CPU the large ones of its preset would take half an hour.

    Raises:
        UsageError: The files of NYUv2 are missing or damaged.
    """
    if data == "nyuv2":
        scenes = NYUv2(root, split, size, size // 4)
        return collate([scenes[index] for index in range(min(n, len(scenes)))])
    rooms = Rooms(split, n, size=size, out=size // 4)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = [rooms.batch(range(i, min(i + 64, n)), device).map(lambda values: values.cpu()) for i in range(0, n, 64)]
    return Sample(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})
