"""Furnished rooms, rendered on the fly: `Rooms` is the data set."""

from gradnorm.study.data.rooms.dataset import Rooms, render
from gradnorm.study.data.rooms.furniture import ROOMS

__all__ = ["ROOMS", "Rooms", "render"]
