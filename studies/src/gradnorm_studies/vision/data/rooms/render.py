"""Renderer of batches of scenes: images and ground truth by ray casting in torch, on any device.

Each part is a unit cube, cylinder or ball seen through an affine map, and each of those an intersection of intervals
along a ray: a part is hit where the last interval begins, if that is before the first one ends. The same function casts
the camera's rays, the shadow rays (from a lamp to what the camera saw) and the depth sensor's (from its projector).

A ray's direction has length 1 along the optical axis, so that where it hits is the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gradnorm_studies.vision.data.rooms.scene import FACES, FOCAL, PART, Scene, Shape, Texture

Axes = Sequence[Tensor]
"""A vector's components as three tensors, which is faster than one tensor."""

SOLIDS = (Shape.BOX, Shape.CYLINDER, Shape.ELLIPSOID)

FACE_NORMALS = torch.tensor([[0, 1, 0], [-1, 0, 0], [0, -1, 0], [1, 0, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float32)
"""Normals of the room's faces, inwards."""

FACE_BY_EXIT = torch.tensor([[3, 0, 4], [1, 2, 5]])
"""The face by which a ray leaves the room: backwards or forwards along x, y or z."""

ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 27}
"""Rays × parts at a time: what fits a cache, or keeps memory in bounds."""

BASELINE = 0.075
"""Baseline of the Kinect, from its camera to its projector on the right, in meters."""


@dataclass(frozen=True)
class SceneBatch:
    """Scenes as tensors, padded to the same number of parts: `parts` holds a field of `PART` each, [B, N, …]."""

    parts: dict[str, Tensor]
    to_local: Tensor
    """[B, N, 3, 3]: from the room's coordinates to those in which a part is a unit shape."""
    counts: NDArray[np.int64]
    """[B, 3]: each scene's boxes, cylinders and ellipsoids; they lie in this order after the faces."""
    size: Tensor
    position: Tensor
    axes: Tensor
    lights: Tensor
    light_colors: Tensor
    ambient: Tensor
    brightness: Tensor
    noise: Tensor
    noise_seed: Tensor

    def groups(self, scenes: slice) -> list[slice]:
        """Where the boxes, the cylinders and the ellipsoids of some scenes lie, with little padding."""
        begins = FACES + np.cumsum([0, *self.counts.max(axis=0)[:-1]])
        return [slice(a, a + n) for a, n in zip(begins.tolist(), self.counts[scenes].max(axis=0).tolist(), strict=True)]


def pack(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> SceneBatch:
    """Scenes as one batch on a device."""
    counts = np.array([[(scene.parts["shape"] == kind).sum() for kind in SOLIDS] for scene in scenes])
    rows = np.zeros((len(scenes), FACES + counts.max(axis=0).sum()), PART)
    rows["half"], rows["center"] = 1e-3, (0.0, 0.0, 1e3)  # padding lies where no ray goes
    for row, scene, own in zip(rows, scenes, counts, strict=True):
        row[:FACES] = scene.parts[:FACES]
        begin, start = FACES, FACES
        for count, most in zip(own, counts.max(axis=0), strict=True):
            row[start : start + count] = scene.parts[begin : begin + count]
            begin, start = begin + count, start + most

    def tensor(values: np.ndarray) -> Tensor:
        kind = torch.int64 if values.dtype == np.int64 else torch.float32
        return torch.tensor(values, dtype=kind, device=device)

    def stacked(name: str) -> Tensor:
        return tensor(np.stack([np.asarray(getattr(scene, name)) for scene in scenes]))

    names = ("size", "position", "axes", "lights", "light_colors", "ambient", "brightness", "noise", "noise_seed")
    return SceneBatch(
        parts={name: tensor(rows[name]) for name in PART.names or ()},
        to_local=tensor(_to_local(rows)),
        counts=counts,
        **{name: stacked(name) for name in names},
    )


def _to_local(rows: np.ndarray) -> np.ndarray:
    """[…] of `PART` → [… 3, 3]: turn back, lean back, scale to the unit shape."""
    c, s, ct, st = np.cos(rows["yaw"]), np.sin(rows["yaw"]), np.cos(rows["tilt"]), np.sin(rows["tilt"])
    zero = np.zeros_like(c)
    turned = [[c, s, zero], [-s * ct, c * ct, st], [s * st, -c * st, ct]]
    rotation = np.stack([np.stack(row, axis=-1) for row in turned], axis=-2)
    return rotation / rows["half"][..., None]


@dataclass(frozen=True)
class Hits:
    """The first hit of each camera ray, [B, R] each."""

    depth: Tensor
    part: Tensor
    """Which part, faces included."""
    point: Tensor
    """[B, R, 3] in the room."""
    normal: Tensor
    """[B, R, 3] in the room."""


def pixel_rays(batch: SceneBatch, size: int) -> Tensor:
    """[B, size², 3]: the rays through the centers of a square image's pixels, in the room's coordinates."""
    x = (torch.arange(size, device=batch.axes.device) + 0.5) / size - 0.5
    across, down = torch.meshgrid(x / FOCAL, x / FOCAL, indexing="xy")
    rays = torch.stack([across.flatten(), down.flatten(), torch.ones_like(across).flatten()], dim=1)
    return rays @ batch.axes


def trace(batch: SceneBatch, rays: Tensor) -> Hits:
    """Cast camera rays [B, R, 3] to their first hits."""
    shell, face = _leave_room(batch, rays)
    nearest, solid = cast(batch, batch.position, rays, _first).unbind(1)
    is_solid = nearest < shell
    depth = torch.where(is_solid, nearest, shell)
    part = torch.where(is_solid, solid.long(), face)
    point = batch.position[:, None] + depth[..., None] * rays
    return Hits(depth, part, point, _normals(batch, part, point))


def _leave_room(batch: SceneBatch, rays: Tensor) -> tuple[Tensor, Tensor]:
    """[B, R] each: the distance at which a ray leaves the room, and the face through which it does."""
    forwards = (rays > 0).long()
    ahead = torch.where(rays > 0, batch.size[:, None], 0.0) - batch.position[:, None]
    exit_at, axis = (ahead / rays).nan_to_num(torch.inf, torch.inf, torch.inf).min(dim=2)
    direction = forwards.gather(2, axis[..., None]).squeeze(2)
    return exit_at, FACE_BY_EXIT.to(rays.device)[direction, axis]


def is_lit(batch: SceneBatch, origin: Tensor, points: Tensor) -> Tensor:
    """[B, R]: whether points [B, R, 3] on the parts' surfaces see a lamp [B, 3] unobstructed."""
    nearest = cast(batch, origin, points - origin[:, None], lambda entries, _: entries.amin(dim=1, keepdim=True))
    return nearest.squeeze(1) > 0.998


def _first(entries: Tensor, parts: Tensor) -> Tensor:
    distance, which = entries.min(dim=1)
    return torch.stack([distance, parts[which].float()], dim=1)


def cast(batch: SceneBatch, origin: Tensor, rays: Tensor, reduce: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Where rays [B, R, 3] from `origin` [B, 3] enter the solid parts, reduced over these a few rays at a time.

    `reduce` makes [b, k, r] of the entries [b, N, r] into the parts [N]: distances in lengths of the ray, infinite
    where a part is missed or the origin is in it.
    """
    offset = origin[:, None] - batch.parts["center"]
    start = (batch.to_local @ offset[..., None]).squeeze(3)
    at_once = max(1, ELEMENTS[rays.device.type] // start.shape[1])
    images = max(1, at_once // rays.shape[1])
    found = []
    for at in torch.arange(len(rays)).split(images):
        chosen = slice(int(at[0]), int(at[-1]) + 1)
        groups = batch.groups(chosen)
        parts = torch.cat([torch.arange(g.start, g.stop, device=rays.device) for g in groups])
        pieces = []
        for some in rays[chosen].split(at_once, dim=1):
            entries = [
                entry(start[chosen, group, :, None].unbind(2), _turned(batch.to_local[chosen, group], some))
                for entry, group in zip((_box, _cylinder, _ball), groups, strict=True)
            ]
            pieces.append(reduce(torch.cat(entries, dim=1), parts))
        found.append(torch.cat(pieces, dim=2))
    return torch.cat(found)


def _turned(affine: Tensor, rays: Tensor) -> Axes:
    """Directions in each part's coordinates: [b, n, 3, 3], [b, r, 3] → three of [b, n, r]."""
    b, n, r = *affine.shape[:2], rays.shape[1]
    return (affine.reshape(b, n * 3, 3) @ rays.mT).view(b, n, 3, r).unbind(2)


def _slab(start: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays go into and out of −1 … 1 on one axis."""
    inverse = (along + 1e-12).reciprocal_()  # a ray along a side would make 0 · ∞
    middle = inverse * -start
    inverse.abs_()
    return middle - inverse, middle.add_(inverse)


def _round(start: Axes, along: Axes) -> tuple[Tensor, Tensor]:
    """Where rays go into and out of the unit circle or ball; NaN where they miss it."""
    a = _dot(along, along)
    b = _dot(start, along)
    root = (b.square() - a * (_dot(start, start) - 1)).sqrt_()
    return (-b - root) / a, (root - b) / a


def _dot(first: Axes, second: Axes) -> Tensor:
    total = first[0] * second[0]
    for x, y in zip(first[1:], second[1:], strict=True):
        total = torch.addcmul(total, x, y)
    return total


def _where_hit(into: Tensor, out: Tensor) -> Tensor:
    """The entry where there is one, ahead; comparisons with NaN are false."""
    return torch.where((into <= out) & (into > 0), into, torch.inf)


def _box(start: Axes, along: Axes) -> Tensor:
    into, out = _slab(start[0], along[0])
    for axis in (1, 2):
        begin, end = _slab(start[axis], along[axis])
        torch.maximum(into, begin, out=into)
        torch.minimum(out, end, out=out)
    return _where_hit(into, out)


def _cylinder(start: Axes, along: Axes) -> Tensor:
    into, out = _round(start[:2], along[:2])
    above, below = _slab(start[2], along[2])
    return _where_hit(torch.maximum(into, above), torch.minimum(out, below))


def _ball(start: Axes, along: Axes) -> Tensor:
    return _where_hit(*_round(start, along))


def _gather(values: Tensor, part: Tensor) -> Tensor:
    """[B, N, …] and [B, R] → [B, R, …]."""
    return values[torch.arange(len(part), device=part.device)[:, None], part]


def _local(batch: SceneBatch, part: Tensor, point: Tensor) -> Tensor:
    """[B, R, 3]: points in their parts' coordinates, −1 … 1."""
    offset = point - _gather(batch.parts["center"], part)
    return (_gather(batch.to_local, part) @ offset[..., None]).squeeze(3)


def _normals(batch: SceneBatch, part: Tensor, point: Tensor) -> Tensor:
    local = _local(batch, part, point)
    shape = _gather(batch.parts["shape"], part)[..., None]
    axis = local.abs().argmax(dim=2)
    cube = F.one_hot(axis, 3) * local.sign()
    side = local * local.new_tensor([1.0, 1.0, 0.0])
    cap = local * local.new_tensor([0.0, 0.0, 1.0])
    tube = torch.where(side.norm(dim=2, keepdim=True) > cap.norm(dim=2, keepdim=True), side, cap)
    curved = torch.where(shape == Shape.CYLINDER, tube, local)
    unit = torch.where(shape == Shape.BOX, cube, curved)
    solid = F.normalize((unit[..., None, :] @ _gather(batch.to_local, part)).squeeze(2), dim=2)
    faces = FACE_NORMALS.to(part.device)[part.clamp(max=FACES - 1)]
    return torch.where(shape == Shape.FACE, faces, solid)


def photograph(batch: SceneBatch, hits: Hits, size: int) -> Tensor:
    """[B, 3, size, size] in 0 … 1: what a small camera makes of the light that comes from the hits."""
    light = shade(batch, hits, pixel=1 / (FOCAL * size)).mT.unflatten(2, (size, size))
    blurred = F.conv2d(F.pad(light, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None], _lens(light.device))
    light = blurred.view_as(light)
    exposure = batch.brightness / light.mean(dim=(1, 2, 3))
    exposed = 1 - torch.exp(-1.3 * exposure[:, None, None, None] * light)
    picture = exposed.clamp(min=1e-6) ** (1 / 2.2)
    return (picture + batch.noise[:, None, None, None] * gaussian(batch.noise_seed, picture)).clamp(0, 1)


def _lens(device: torch.device) -> Tensor:
    taps = torch.tensor([0.2, 0.6, 0.2], device=device)
    return torch.outer(taps, taps)[None, None]


def shade(batch: SceneBatch, hits: Hits, pixel: float) -> Tensor:
    """[B, R, 3] linear light: two lamps with shadows, a highlight, what the room scatters, and what glows by itself.

    `pixel`: a pixel's width over the focal length, for textures too fine to be seen.
    """
    surface = {
        name: _gather(batch.parts[name], hits.part)
        for name in ("color", "second", "frequency", "texture", "gloss", "glow")
    }
    color = _texture(batch, hits, surface, pixel)
    view = F.normalize(batch.position[:, None] - hits.point, dim=2)
    gloss = surface["gloss"][..., None]
    light = batch.ambient[:, None] * _openness(batch, hits)
    shine = torch.zeros_like(light)
    for lamp, tint in zip(batch.lights.unbind(1), batch.light_colors.unbind(1), strict=True):
        path = hits.point - lamp[:, None]
        distance = path.norm(dim=2, keepdim=True)
        to_lamp = -path / distance
        facing = (hits.normal * to_lamp).sum(dim=2, keepdim=True).clamp(min=0)
        reached = is_lit(batch, lamp, hits.point)[..., None]
        arriving = tint[:, None] * reached * facing * (2.2 / (1 + 0.25 * distance.square()))
        half = F.normalize(to_lamp + view, dim=2)
        light = light + arriving
        shine = shine + arriving * gloss * (hits.normal * half).sum(dim=2, keepdim=True).clamp(min=0) ** 40
    return color * (light + surface["glow"][..., None]) + shine


def _openness(batch: SceneBatch, hits: Hits) -> Tensor:
    """[B, R, 1]: ambient occlusion, darker in the room's corners and on surfaces that face down."""
    size, point = batch.size[:, None], hits.point
    to_walls = torch.minimum(point, size - point).clamp(min=0)
    corner = 1 - 0.35 * torch.exp(-to_walls / 0.25)
    # A face is itself at distance 0: only its neighbors darken it.
    shadow = torch.where(hits.normal.abs() > 0.9, 1.0, corner).prod(dim=2, keepdim=True)
    return shadow * (0.8 + 0.2 * hits.normal[..., 2:])


def _texture(batch: SceneBatch, hits: Hits, surface: dict[str, Tensor], pixel: float) -> Tensor:
    """[B, R, 3]: the surface's color at each hit."""
    meters = _local(batch, hits.part, hits.point) * _gather(batch.parts["half"], hits.part)
    frequency, texture = surface["frequency"], surface["texture"]
    phase = meters * frequency + 0.37
    u, v, w = phase.unbind(2)
    cell = phase.floor()
    turn = 2 * torch.pi
    plank = cell[..., 0] * 0.618034 + (v + cell[..., 0] * 0.37).floor() * 0.754878
    options = {
        Texture.STRIPES: (4 * torch.sin(turn * phase.sum(dim=2)) + 0.5).clamp(0, 1),
        Texture.CHECKS: cell.sum(dim=2).remainder(2),
        Texture.WOOD: 0.5 + 0.5 * torch.sin(turn * (u + v + w + 0.6 * torch.sin(3 * (u + 0.7 * v - w)))),
        Texture.CLOUDS: clouds(phase),
        Texture.PLANKS: 0.7 * plank.frac().abs() + 0.3 * (u.remainder(1) < 0.06),
        Texture.GRADIENT: (w * 1.0 + 0.13).clamp(0, 1),
    }
    weight = torch.zeros_like(u)
    for kind, value in options.items():
        weight = torch.where(texture == kind, value, weight)
    spines = (cell[..., :1] * cell.new_tensor([0.754878, 0.569840, 0.380278])).frac().abs()
    weight = torch.where((texture == Texture.SPINES)[..., None], spines, weight[..., None])
    # What repeats within two pixels would only shimmer: it fades to its mean.
    repeats = frequency.amax(dim=2, keepdim=True) * hits.depth[..., None] * pixel
    weight = 0.45 + (weight - 0.45) / (1 + (2.5 * repeats) ** 4)
    plain = (texture == Texture.PLAIN)[..., None]
    return surface["color"] + torch.where(plain, 0.0, weight) * (surface["second"] - surface["color"])


def clouds(phase: Tensor) -> Tensor:
    """[…, 3] → […]: a smooth pattern in 0 … 1 that does not repeat soon."""
    u, v, w = phase.unbind(-1)
    warped = torch.sin(1.7 * v + 0.9 * w) + torch.sin(2.3 * u - 1.3 * v) + torch.sin(1.1 * w + 2.1 * u)
    return 0.5 + 0.25 * (torch.sin(2.9 * u + 1.9 * warped) + torch.sin(3.7 * v - 1.3 * w + 1.4 * warped))


def gaussian(seed: Tensor, like: Tensor) -> Tensor:
    """Noise of variance 1 from integers alone, the same on every device: `seed` [B], one value for each of `like`."""
    bits = _hash(seed, like[0].numel())
    total = sum(((bits >> shift) & 255 for shift in (0, 8, 16, 24)), torch.zeros_like(bits))
    return ((total - 510) / 147.8).view_as(like)


def uniform(seed: Tensor, like: Tensor) -> Tensor:
    """Numbers in 0 … 1, as `gaussian`."""
    return (_hash(seed, like[0].numel()) / 2**32).view_as(like)


def _hash(seed: Tensor, count: int) -> Tensor:
    """[B, count] of 32 bits: two rounds of multiplying and folding."""
    bits = (seed[:, None] * 2654435761 + torch.arange(count, device=seed.device) * 2246822519) & 0xFFFFFFFF
    for factor in (2146121005, 2221713035):
        bits = ((bits ^ (bits >> 15)) * factor) & 0xFFFFFFFF
    return bits ^ (bits >> 15)


def has_depth(batch: SceneBatch, hits: Hits) -> Tensor:
    """[B, R]: whether a structured-light sensor would have measured the depth.

    Its projector must reach the point, at a moderate angle, neither too near nor too far, on a surface that is neither
    glossy nor dark.
    """
    projector = batch.position + BASELINE * batch.axes[:, 0]
    path = hits.point - projector[:, None]
    reached = is_lit(batch, projector, hits.point)
    angle = (F.normalize(path, dim=2) * hits.normal).sum(dim=2).abs()
    chance = uniform(batch.noise_seed + 1, hits.depth)
    gloss = _gather(batch.parts["gloss"], hits.part)
    blotch = clouds(2.5 * hits.point)
    dark = (0.05 - _gather(batch.parts["color"], hits.part).mean(dim=2)).clamp(min=0)
    lost = 0.01 + 4 * (0.24 - angle).clamp(min=0) + 0.4 * (hits.depth - 4.5).clamp(min=0) + 12 * dark
    return reached & (chance > lost) & (blotch > 1.3 * gloss - 0.25) & (hits.depth > 0.45)
