"""A pinhole camera, and surface normals from depth.

A plane n·P = d, seen by a pinhole camera at the pixel with ray (u, v, 1), has 1/z = n·(u, v, 1) / d: its inverse depth
is affine in the pixel's coordinates, and the three coefficients are the normal, up to its length. So a plane is fitted
to inverse depth by linear least squares; the noise of a structured-light sensor is uniform in inverse depth, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies.vision.data.sample import VISIBLE, Sample

TAPS, SPACING = 7, 2
"""A plane is fitted to 7 × 7 pixels, every second of 13 × 13."""

EDGE = 0.05
"""Relative difference in depth above which a pixel belongs to another surface."""

ENOUGH = 0.25
"""Share of the pixels that must belong to the surface for a valid fit."""


def peaks(maps: Tensor) -> Tensor:
    """Row and column of the maximum of each map, [N, h, w] → [N, 2] float32.

    Examples:
        >>> peaks(torch.tensor([[[0.0, 0.1, 0.0], [0.0, 0.0, 0.9]]]))
        tensor([[1., 2.]])
    """
    return torch.stack(torch.unravel_index(maps.flatten(1).argmax(1), maps.shape[1:]), dim=-1).float()


def places(heatmaps: Tensor, truth: Sample) -> Tensor:
    """Image positions (x, y) in the heatmaps of the keypoints that the ground truth has, [48, h, w] → [k, 2]."""
    assert truth.keypoints is not None
    cells = peaks(heatmaps[truth.keypoints.amax(dim=(-2, -1)) > VISIBLE]).flip(-1) + 0.5
    return cells * truth.image.shape[-1] / heatmaps.shape[-1]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: focal lengths and principal point in pixels; (0, 0) is the center of the upper left pixel."""

    fx: float
    fy: float
    cx: float
    cy: float

    def cropped(self, left: float, top: float) -> Camera:
        """The camera of the image after cropping its first columns and rows."""
        return Camera(self.fx, self.fy, self.cx - left, self.cy - top)

    def scaled(self, x: float, y: float) -> Camera:
        """The camera of an image scaled by these factors."""
        return Camera(self.fx * x, self.fy * y, (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5)

    def rays(self, height: int, width: int) -> Tensor:
        """[3, h, w]: the point at depth 1 on each pixel's ray; times depth, the visible point."""
        u = (torch.arange(width) - self.cx) / self.fx
        v = (torch.arange(height) - self.cy) / self.fy
        return torch.stack([u.expand(height, -1), v[:, None].expand(-1, width), torch.ones(height, width)])


def normals_from_depth(depth: Tensor, camera: Camera) -> Tensor:
    """Unit normals that face the camera, by a plane fitted around each pixel.

    Args:
        depth: [1, h, w] along the optical axis; 0 where unknown.
        camera: The camera of the depth map.

    Returns:
        [3, h, w], x right, y down, z forward; 0 where the depth is unknown or too little of the surface is seen.

    Examples:
        >>> normals_from_depth(torch.full((1, 9, 9), 2.0), Camera(100, 100, 4, 4))[2, 4, 4].item()
        -1.0
    """
    height, width = depth.shape[-2:]
    steps = torch.arange(TAPS) - TAPS // 2
    # Around each pixel, in units of the step: well conditioned, and the same for all of them.
    design = torch.stack([steps.repeat(TAPS), steps.repeat_interleave(TAPS), torch.ones(TAPS**2)], dim=1)
    around = F.unfold(depth[None], TAPS, dilation=SPACING, padding=SPACING * (TAPS // 2))[0]
    center = depth.flatten()
    same = ((around - center).abs() <= EDGE * center) & (around > 0)
    inverse = torch.where(same, 1 / around, 0)
    squares = (design[:, :, None] * design[:, None, :]).flatten(1)
    left = (same.to(depth.dtype).T @ squares).unflatten(1, (3, 3))
    right = inverse.T @ design
    known = same.sum(0) >= ENOUGH * TAPS**2
    fit = torch.linalg.solve(torch.where(known[:, None, None], left, torch.eye(3)), right)
    # From steps around each pixel to u and v: slopes by the chain rule, the constant by going back to the ray (0, 0).
    a, b = fit[:, 0] * camera.fx / SPACING, fit[:, 1] * camera.fy / SPACING
    u, v, _ = camera.rays(height, width).flatten(1)
    normals = F.normalize(-torch.stack([a, b, fit[:, 2] - a * u - b * v]), dim=0)
    return torch.where(known, normals, 0).unflatten(1, (height, width))
