import pytest
import torch
from torch.nn import functional as F

from gradnorm_studies.vision.data.geometry import Camera, normals_from_depth

from .scenes import angles, plane, room

CAMERA = Camera(90.0, 80.0, 47.0, 30.0)
SHAPE = 64, 96


@pytest.mark.parametrize("normal", [(0.0, 0.0, -1.0), (0.4, 0.0, -0.9), (0.0, -0.5, -0.8), (0.3, 0.4, -0.9)])
def test_planes_have_their_normals(normal):
    depth, expected = plane(CAMERA, *SHAPE, normal)
    assert angles(normals_from_depth(depth, CAMERA), expected).max() < 0.05


def test_normals_are_unit_and_face_the_camera():
    depth, _ = room(CAMERA, *SHAPE)
    found = normals_from_depth(depth, CAMERA)
    known = found.any(0)
    torch.testing.assert_close(found.norm(dim=0)[known], torch.ones(int(known.sum())))
    assert (found * CAMERA.rays(*SHAPE)).sum(0)[known].max() < 0


def test_the_corner_of_a_room_is_not_smeared_far():
    depth, expected = room(CAMERA, *SHAPE)
    wrong = angles(normals_from_depth(depth, CAMERA), expected)
    assert wrong.median() < 0.1
    assert (wrong > 5).float().mean() < 0.25


def test_a_step_in_depth_keeps_both_surfaces_apart():
    depth = torch.full((1, *SHAPE), 2.0)
    depth[..., 48:] = 3.0
    flat = torch.tensor([0.0, 0.0, -1.0])[:, None, None].expand(3, *SHAPE)
    assert angles(normals_from_depth(depth, CAMERA), flat).max() < 0.01


def test_unknown_depth_gives_no_normal_and_spoils_none():
    depth, expected = plane(CAMERA, *SHAPE, (0.3, 0.4, -0.9))
    depth[..., 20:30, 40:50] = 0
    found = normals_from_depth(depth, CAMERA)
    hole = depth[0] == 0
    assert not found[:, hole].any()
    assert angles(found, expected)[~hole].max() < 0.05


def test_a_lone_pixel_has_no_normal():
    depth = torch.zeros(1, *SHAPE)
    depth[0, 30, 40] = 2.0
    assert not normals_from_depth(depth, CAMERA).any()


@pytest.mark.parametrize("change", ["cropped", "scaled"])
def test_a_changed_camera_sees_the_same_points(change):
    rays = CAMERA.rays(64, 96)
    if change == "cropped":
        seen, expected = CAMERA.cropped(left=10, top=4).rays(60, 86), rays[:, 4:, 10:]
    else:
        seen, expected = CAMERA.scaled(0.5, 0.25).rays(16, 48), F.avg_pool2d(rays[None], (4, 2))[0]
    torch.testing.assert_close(seen, expected)
