"""Layout types and keypoints of views of a box-shaped room.

Seen from inside, a room's edges form two chains, where the walls meet the ceiling and where they meet the floor,
joined by one vertical edge per corner. What a view shows of them is one of eleven types (Zhang et al., LSUN; Lee et
al., RoomNet): none to two vertical edges, with or without ceiling, with or without floor. Keypoints are the corners
in view and the places where edges leave the image. In this file's order a type has an upper row of them and a lower
one, each from left to right, so that mirroring a view keeps its type and reverses both rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gradnorm_studies.vision.data.sample import KEYPOINTS

Array = NDArray[np.float64]


class Type(NamedTuple):
    """The edges that a view of this type shows."""

    verticals: int
    ceiling: bool
    floor: bool

    @property
    def rows(self) -> tuple[int, int]:
        """The number of keypoints above and below: a chain's corners and its two ends, or the ends of the verticals."""
        above = self.verticals + 2 * self.ceiling
        return above, self.verticals + 2 * self.floor


TYPES = (
    Type(2, ceiling=True, floor=True),
    Type(2, ceiling=False, floor=True),
    Type(2, ceiling=True, floor=False),
    Type(1, ceiling=True, floor=False),
    Type(1, ceiling=True, floor=True),
    Type(1, ceiling=False, floor=True),
    Type(0, ceiling=True, floor=True),
    Type(2, ceiling=False, floor=False),
    Type(0, ceiling=True, floor=False),
    Type(0, ceiling=False, floor=True),
    Type(1, ceiling=False, floor=False),
)
"""The types in RoomNet's order: 8, 6, 6, 4, 6, 4, 4, 4, 2, 2 and 2 keypoints."""

FIRST = tuple(np.cumsum([0, *(sum(kind.rows) for kind in TYPES)]).tolist())
"""Where each type's keypoints begin among the 48, and the end."""

CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
"""The corners of the floor, in order, as shares of width and depth."""


def _mirror() -> torch.Tensor:
    places: list[int] = []
    for kind in TYPES:
        for length in kind.rows:
            places += reversed(range(len(places), len(places) + length))
    assert len(places) == FIRST[-1] == KEYPOINTS
    return torch.tensor(places)


MIRROR = _mirror()
"""[48]: `keypoints[MIRROR]` are the channels of the heatmaps in the mirrored image."""


class LayoutView(NamedTuple):
    """A layout type, by its index in `TYPES`, and its keypoints [k, 2]: x and y, in 0 … 1 over the image."""

    kind: int
    keypoints: Array


def project(size: Array, position: Array, axes: Array, focal: float) -> LayoutView | None:
    """The layout as a camera in the room sees it; `None` if it is none of the eleven types.

    `size`: the room's width, depth and height [3]; `position` [3] and `axes` [3, 3] (rows: right, down, forward) of the
    camera in the room's coordinates; `focal`: its focal length in image widths. The image is square.
    """
    floor = np.concatenate([CORNERS * size[:2], np.zeros((4, 1))], axis=1)
    ends = np.concatenate([floor, floor + np.array([0, 0, size[2]])]) - position
    corners = ends @ axes.T
    heading = axes[2, :2] / np.linalg.norm(axes[2, :2])
    # Along a chain from left to right the bearing grows, whatever the camera's tilt.
    bearings = np.arctan2(ends[:, 0] * heading[1] - ends[:, 1] * heading[0], ends[:, :2] @ heading)
    order = np.argsort(bearings[:4])
    seen = _clip(corners[order], corners[order + 4], focal)  # verticals, from left to right
    verticals = int(seen.visible.sum())
    rows = []
    for chain, ends_of_verticals in ((corners[4:][order], seen.last), (corners[:4][order], seen.first)):
        edges = _clip(chain, np.roll(chain, -1, axis=0), focal)
        is_seen = bool(edges.visible.any())
        if is_seen and (_inside(chain, focal).sum(), edges.visible.sum()) != (verticals, verticals + 1):
            return None
        rows.append((is_seen, _from_left(edges) if is_seen else ends_of_verticals[seen.visible]))
    (ceiling_seen, above), (floor_seen, below) = rows
    shown = Type(verticals, ceiling_seen, floor_seen)
    if shown not in TYPES:
        return None
    points = np.concatenate([above, below])
    return LayoutView(TYPES.index(shown), points[:, :2] / points[:, 2:] * focal + 0.5)


class _Segments(NamedTuple):
    """Edges clipped to the image: which are in view, and both ends of their visible parts, in camera coordinates."""

    visible: NDArray[np.bool_]
    first: Array
    last: Array


def _margins(points: Array, focal: float) -> Array:
    """[n, 4]: signed distances to the four planes through the image's borders; negative outside."""
    reach = points[:, 2:] * (0.5 / focal)
    return np.concatenate([reach - points[:, :2], reach + points[:, :2]], axis=1)


def _inside(points: Array, focal: float) -> NDArray[np.bool_]:
    return np.all(_margins(points, focal) >= 0, axis=1)


def _clip(first: Array, last: Array, focal: float) -> _Segments:
    """Liang and Barsky's clipping of n segments at once."""
    a, b = _margins(first, focal), _margins(last, focal)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = a / (a - b)
    start = np.where((a < 0) & (b >= 0), crossing, 0).max(axis=1)
    stop = np.where((b < 0) & (a >= 0), crossing, 1).min(axis=1)
    visible = (start < stop) & ~((a < 0) & (b < 0)).any(axis=1)
    along = last - first
    return _Segments(visible, first + start[:, None] * along, first + stop[:, None] * along)


def _from_left(edges: _Segments) -> Array:
    """The keypoints of a visible chain, from left to right: its entry, its corners, its exit."""
    (at,) = np.nonzero(edges.visible)
    # The edges go round the room: the one to start with is that whose predecessor is out of view.
    start = at[~edges.visible[at - 1]][0]
    order = (start + np.arange(len(at))) % len(edges.visible)
    return np.concatenate([edges.first[order[:1]], edges.last[order]])
