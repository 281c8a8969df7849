"""Furnished rooms, rendered on the fly: `Rooms` is the data set."""

from gradnorm_studies.vision.data.rooms.dataset import Rooms, render
from gradnorm_studies.vision.data.rooms.furniture import ROOMS, STYLES

__all__ = ["ROOMS", "STYLES", "Rooms", "render"]
