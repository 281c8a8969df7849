"""A plane and a box-shaped room: depth and normals that are known exactly."""

import torch
from torch.nn import functional as F

WALLS = (
    ((0.0, -1.0, 0.0), 1.2),  # floor
    ((0.0, 1.0, 0.0), 1.1),  # ceiling
    ((1.0, 0.0, 0.0), 1.6),  # left
    ((-1.0, 0.0, 0.0), 1.9),  # right
    ((0.0, 0.0, -1.0), 4.0),  # back
)
"""The inward normal of each wall, and its distance from the camera."""


def room(camera, height, width, tilt=0.3):
    """Depth [1, h, w] and normals [3, h, w] of the room, seen by a camera that looks down by `tilt` radians."""
    c, s = torch.cos(torch.tensor(tilt)), torch.sin(torch.tensor(tilt))
    down = torch.tensor([[1.0, 0, 0], [0, c, -s], [0, s, c]])
    walls = torch.tensor([normal for normal, _ in WALLS]) @ down.T
    distances = torch.tensor([distance for _, distance in WALLS])
    facing = -(walls @ camera.rays(height, width).flatten(1))
    depth = torch.where(facing > 0, distances[:, None] / facing, torch.inf)
    nearest, which = depth.min(0)
    return nearest.view(1, height, width), walls[which].T.view(3, height, width)


def plane(camera, height, width, normal, distance=2.0):
    """Depth [1, h, w] of the plane with this normal, which faces the camera, and the unit normal [3, h, w]."""
    n = F.normalize(torch.tensor(normal), dim=0)
    depth = -distance / (n @ camera.rays(height, width).flatten(1))
    return depth.view(1, height, width), n[:, None, None].expand(3, height, width)


def angles(first, second):
    """[h, w]: degrees between two fields of unit vectors [3, h, w]."""
    return torch.rad2deg(torch.linalg.cross(first, second, dim=0).norm(dim=0).atan2((first * second).sum(0)))
