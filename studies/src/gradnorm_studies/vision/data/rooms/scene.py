"""A room as plain arrays: its parts, its camera and its lights, all drawn from one seed.

Coordinates are meters: x along the room's width, y along its depth, z up; the room spans 0 … width, 0 … depth,
0 … height. A part is a box, an elliptic cylinder or an ellipsoid, turned about the vertical (`yaw`) after it was leaned
about its own x axis (`tilt`). The first six parts are the room's own faces.

All randomness is NumPy's PCG64 in float64, so that a seed gives the same scene on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradnorm_studies.vision.data.rooms.layout import Array, LayoutView, project
from gradnorm_studies.vision.data.sample import CLASSES

FOCAL = 0.81
"""The camera's focal length in image widths, as the Kinect's behind NYUv2 (519 of 640 pixels): 63° across."""

FACES = 6
"""The room's own parts come first: the walls y = 0, x = width, y = depth, x = 0, the floor and the ceiling."""

KEPT = (1.0, 1.0, 1.0, 1.0, 0.35, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Share of the views of each layout type that are kept, since two of the eleven make up two thirds of all views."""

LEAST_IN_VIEW = 0.2
"""Minimum share of the objects' parts in view; a view of a bare wall teaches little."""

SHELL = ("wall", "floor", "ceiling")
"""Classes that are no objects: they have no box, and their instance is 0."""


class Shape(IntEnum):
    """The unit shape of a part, within −1 … 1 along each axis, before it is scaled, tilted, rotated and moved."""

    BOX = 0
    CYLINDER = 1
    ELLIPSOID = 2
    FACE = 3


class Texture(IntEnum):
    """The pattern between a material's two colors."""

    PLAIN = 0
    STRIPES = 1
    CHECKS = 2
    WOOD = 3
    CLOUDS = 4
    SPINES = 5
    PLANKS = 6
    GRADIENT = 7


Color = tuple[float, float, float]
Span = tuple[float, float]
T = TypeVar("T")


class Material(NamedTuple):
    """Linear colors in 0 … 1; `frequency`: repeats per meter along each of the part's axes."""

    color: Color
    second: Color = (0.0, 0.0, 0.0)
    frequency: Color = (0.0, 0.0, 0.0)
    texture: Texture = Texture.PLAIN
    gloss: float = 0.0
    glow: float = 0.0


PART = np.dtype(
    [
        ("shape", np.int64),
        ("label", np.int64),
        ("instance", np.int64),
        ("center", np.float64, 3),
        ("half", np.float64, 3),
        ("yaw", np.float64),
        ("tilt", np.float64),
        ("color", np.float64, 3),
        ("second", np.float64, 3),
        ("frequency", np.float64, 3),
        ("texture", np.int64),
        ("gloss", np.float64),
        ("glow", np.float64),
    ]
)
"""One row per part. `half`: half its size along its own axes; `instance`: 0 or the object it belongs to."""


@dataclass(frozen=True)
class Scene:
    """The input of the renderer."""

    room: int
    """The kind of room."""
    size: Array
    """[3] width, depth and height."""
    parts: NDArray[np.void]
    """[6 + P] of `PART`; after the faces, sorted by shape."""
    position: Array
    """[3] of the camera."""
    axes: Array
    """[3, 3]: the camera's right, down and forward."""
    view: LayoutView
    """The layout as the camera sees it."""
    lights: Array
    """[2, 3] positions."""
    light_colors: Array
    """[2, 3]"""
    ambient: Array
    """[3]"""
    brightness: float
    """Of the picture's mean, in 0 … 1, before gamma."""
    noise: float
    """Standard deviation of the sensor's noise at mid gray, of full scale."""
    noise_seed: int


class Place(NamedTuple):
    """Where something stands, and which way its own y axis (its front) points: `yaw` from the room's y, to the left."""

    x: float
    y: float
    z: float = 0.0
    yaw: float = 0.0

    def at(self, x: float, y: float, z: float = 0.0, turn: float = 0.0) -> Place:
        """A place given in this one's own coordinates."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return Place(self.x + c * x - s * y, self.y + s * x + c * y, self.z + z, self.yaw + turn)


class Piece(NamedTuple):
    """One object at a place, to which parts are added in its own coordinates."""

    draft: Draft
    place: Place
    label: int
    instance: int

    def box(self, x: Span, y: Span, z: Span, material: Material, tilt: float = 0.0) -> None:
        """A box from … to along each axis, leaned about its center."""
        self._add(Shape.BOX, x, y, z, material, tilt)

    def cylinder(self, x: float, y: float, z: Span, radius: float, material: Material) -> None:
        self._add(Shape.CYLINDER, (x - radius, x + radius), (y - radius, y + radius), z, material)

    def ball(self, x: Span, y: Span, z: Span, material: Material) -> None:
        """The ellipsoid that fills a box."""
        self._add(Shape.ELLIPSOID, x, y, z, material)

    def shifted(self, x: float, y: float) -> Piece:
        """The same object, built on from another place."""
        return self._replace(place=self.place.at(x, y))

    def _add(self, shape: Shape, x: Span, y: Span, z: Span, material: Material, tilt: float = 0.0) -> None:
        center = self.place.at(*((low + high) / 2 for low, high in (x, y, z)))
        half = tuple((high - low) / 2 for low, high in (x, y, z))
        row = (shape, self.label, self.instance, center[:3], half, self.place.yaw, tilt, *material)
        self.draft.rows.append(row)


class Draft:
    """A scene while it is drawn: chance, the parts so far, and the room that is left.

    Args:
        rng: A seeded generator.
        largest: Maximum width and depth of the room in meters.
    """

    def __init__(self, rng: np.random.Generator, largest: float = math.inf) -> None:
        self._numbers = _uniform(rng)
        self.size = (
            self.between(2.9, min(5.2, largest)),
            self.between(3.2, min(6.6, largest)),
            self.between(2.35, 3.0),
        )
        self.rows: list[tuple] = []
        self.window: Place | None = None
        self._instances = 0
        self._taken: list[tuple[float, float, float, float]] = []
        self._hung: list[tuple[int, float, float, float, float]] = []

    def between(self, low: float, high: float) -> float:
        """A number, all equally likely."""
        return low + (high - low) * next(self._numbers)

    def chance(self, probability: float) -> bool:
        return next(self._numbers) < probability

    def pick(self, options: tuple[T, ...]) -> T:
        return options[int(next(self._numbers) * len(options))]

    def piece(self, label: str, place: Place) -> Piece:
        """A new object, or a part of the shell."""
        instance = 0
        if label not in SHELL:
            self._instances += 1
            instance = self._instances
        return Piece(self, place, CLASSES.index(label), instance)

    def wall(self, number: int, along: float, away: float = 0.0, up: float = 0.0) -> Place:
        """A place at a wall, facing the room: `along` from the wall's left end as seen from outside."""
        w, d, _ = self.size
        corner = ((0.0, 0.0), (w, 0.0), (w, d), (0.0, d))[number]
        return Place(*corner, 0.0, number * math.pi / 2).at(along, away, up)

    def wall_length(self, number: int) -> float:
        """Of the wall by its number: 0 and 2 are the width, 1 and 3 the depth."""
        return self.size[number % 2]

    def against_wall(self, width: float, depth: float, height: float, gap: float = 0.05) -> Place | None:
        """Free floor at a wall that nothing hangs on up to this height: the middle of the back. None: there is none."""
        for _ in range(12):
            number = self.pick((0, 1, 2, 3))
            room = self.wall_length(number) - width
            if room < 0:
                continue
            along = width / 2 + self.between(0, room)
            place = self.wall(number, along)
            if self._hangs(number, along, width, 0, height):
                continue
            if self.claim(place.at(0, depth / 2), width + 2 * gap, depth):
                self.hang(number, along, width, 0, height)
                return place
        return None

    def on_wall(self, width: float, bottom: float, top: float) -> Place | None:
        """Free wall, also above furniture: the middle of the lower edge. None: there is none."""
        for _ in range(12):
            number = self.pick((0, 1, 2, 3))
            room = self.wall_length(number) - width - 0.3
            if room < 0:
                continue
            along = 0.15 + width / 2 + self.between(0, room)
            if not self._hangs(number, along, width, bottom, top):
                self.hang(number, along, width, bottom, top)
                return self.wall(number, along, up=bottom)
        return None

    def on_floor(self, width: float, depth: float) -> Place | None:
        """Free floor away from the walls, anyhow turned: its middle. None: there is none."""
        w, d, _ = self.size
        for _ in range(12):
            yaw = self.pick((0, 1, 2, 3)) * math.pi / 2 + self.between(-0.2, 0.2)
            margin = max(width, depth) / 2 + 0.15
            if 2 * margin > min(w, d):
                return None
            place = Place(self.between(margin, w - margin), self.between(margin, d - margin), 0.0, yaw)
            if self.claim(place, width, depth):
                return place
        return None

    def claim(self, middle: Place, width: float, depth: float) -> bool:
        """Takes floor, if it is within the room and free; what is turned takes the upright rectangle around it."""
        c, s = abs(math.cos(middle.yaw)), abs(math.sin(middle.yaw))
        x, y = (c * width + s * depth) / 2, (s * width + c * depth) / 2
        mine = (middle.x - x, middle.x + x, middle.y - y, middle.y + y)
        slack = 0.06  # the gap that furniture at a wall keeps to its neighbors may reach into the next wall
        if mine[0] < -slack or mine[1] > self.size[0] + slack or mine[2] < -slack or mine[3] > self.size[1] + slack:
            return False
        if any(mine[0] < b and a < mine[1] and mine[2] < d and c < mine[3] for a, b, c, d in self._taken):
            return False
        self._taken.append(mine)
        return True

    def hang(self, number: int, along: float, width: float, bottom: float = 0.0, top: float = 9.0) -> None:
        self._hung.append((number, along - width / 2, along + width / 2, bottom, top))

    def _hangs(self, number: int, along: float, width: float, bottom: float, top: float) -> bool:
        low, high = along - width / 2 - 0.08, along + width / 2 + 0.08
        return any(
            number == wall and low < right and left < high and bottom < above and below < top
            for wall, left, right, below, above in self._hung
        )

    def parts(self, classes: Container[str] = CLASSES, smallest: float = 0.0) -> NDArray[np.void]:
        """The rows so far; the faces are the first six, and stay in front.

        Args:
            classes: Parts of other classes are left out…
            smallest: … and objects whose largest part is shorter than this, in meters.
        """
        longest: dict[int, float] = {}
        for _, _, instance, _, half, *_ in self.rows[FACES:]:
            longest[instance] = max(longest.get(instance, 0.0), 2 * max(half))
        kept = [row for row in self.rows[FACES:] if CLASSES[row[1]] in classes and longest[row[2]] >= smallest]
        return np.array([*self.rows[:FACES], *sorted(kept, key=lambda row: row[0])], dtype=PART)


def _uniform(rng: np.random.Generator) -> Iterator[float]:
    """Uniform numbers in 0 … 1, drawn a thousand at a time, which is ten times as fast as one by one."""
    while True:
        yield from rng.random(1024).tolist()


def look(draft: Draft, parts: NDArray[np.void], at_first: bool = False) -> tuple[Array, Array, LayoutView]:
    """A camera that is in nothing and sees some objects and one of the eleven layouts: its position, axes and view.

    `at_first`: it sees the whole of the first object.
    """
    size = np.array(draft.size)
    solid = parts[FACES:]
    is_subject = solid["instance"] > 0
    least = LEAST_IN_VIEW
    targets = solid["center"]  # people photograph things, not corners
    if at_first:
        is_subject = solid["instance"] == solid["instance"][is_subject].min()
        targets, least = targets[is_subject], 1.0
    cos, sin = np.cos(solid["yaw"]), np.sin(solid["yaw"])
    while True:
        position = np.array([draft.between(0.3, s - 0.3) for s in draft.size[:2]] + [draft.between(1.0, 1.75)])
        target = targets[int(draft.between(0, len(targets))), :2]
        away = target - position[:2]
        yaw = math.atan2(-away[0], away[1])
        pitch, roll = draft.between(-0.5, 0.22), draft.between(-0.03, 0.03)
        x, y, z = (position - solid["center"]).T
        local = np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=1)
        near = (np.maximum(abs(local) - solid["half"], 0) ** 2).sum(axis=1) < 0.35**2
        if np.hypot(*away) < 0.9 or near.any():
            continue
        axes = camera_axes(yaw, pitch, roll)
        across, down, ahead = axes @ (solid["center"] - position)[is_subject].T
        if (np.maximum(abs(across), abs(down)) < ahead * 0.5 / FOCAL).mean() < least:
            continue
        found = project(size, position, axes, FOCAL)
        if found is not None and draft.chance(KEPT[found.kind]):
            return position, axes, found


def camera_axes(yaw: float, pitch: float, roll: float) -> Array:
    """[3, 3] rows right, down, forward: turned from the room's y to the left, tipped up, rolled; radians."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    forward = np.array([-sy * cp, cy * cp, sp])
    right = np.array([cy, sy, 0.0])
    down = np.cross(forward, right)
    return np.stack([cr * right + sr * down, cr * down - sr * right, forward])
