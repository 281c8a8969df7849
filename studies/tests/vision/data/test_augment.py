"""Augmentation keeps image and truth in step. That a flip is the mirrored scene is tested with the rooms."""

from dataclasses import fields, replace

import pytest
import torch
from torch.testing import assert_close

from gradnorm_studies.vision.data import augment
from gradnorm_studies.vision.data.geometry import Camera, normals_from_depth
from gradnorm_studies.vision.data.rooms import Rooms, layout
from gradnorm_studies.vision.data.sample import Sample, collate

from .scenes import angles, plane, room

CAMERA = Camera(90.0, 80.0, 47.0, 45.0)
HEIGHT, WIDTH = 96, 96
FACTORS = pytest.mark.parametrize(("factor", "corner"), [(1.2, (0.0, 0.0)), (1.5, (0.3, 0.8)), (2.0, (1.0, 0.5))])


@pytest.fixture
def sample():
    """The room; each class is a hundred times what the image's first channel shows there."""
    generator = torch.Generator().manual_seed(0)
    depth, normals = room(CAMERA, HEIGHT, WIDTH)
    across = torch.arange(WIDTH).expand(HEIGHT, -1)
    down = torch.arange(HEIGHT)[:, None].expand(-1, WIDTH)
    return Sample(
        image=torch.stack([across, down, torch.zeros(HEIGHT, WIDTH)]).float() / 100,
        segmentation=across.long(),
        depth=depth,
        normals=normals,
        keypoints=torch.rand(48, HEIGHT, WIDTH, generator=generator),
        boxes=torch.tensor([[2.0, 4.0, 8.0, 9.0], [40.0, 30.0, 70.0, 80.0], [60.0, 50.0, 90.0, 60.0], [0.0] * 4]),
        labels=torch.tensor([3, 5, 7, -1]),
        room=torch.tensor(2),
    )


def scaled_camera(factor, corner):
    """The same focal lengths; what was at the corner is at the origin."""
    left, top = (place * (1 - 1 / factor) for place in corner)
    moved = CAMERA.cropped(left * WIDTH, top * HEIGHT).scaled(factor, factor)
    return Camera(CAMERA.fx, CAMERA.fy, moved.cx, moved.cy)


@FACTORS
@pytest.mark.parametrize("normal", [(0.5, -0.4, -0.75), (0.0, -0.6, -0.8)])
def test_the_scaled_depth_has_the_scaled_normals(sample, normal, factor, corner):
    depth, normals = plane(CAMERA, HEIGHT, WIDTH, normal)
    scaled = augment.scale(replace(sample, depth=depth, normals=normals), factor, corner)
    found = normals_from_depth(scaled.depth, scaled_camera(factor, corner))
    assert angles(found, scaled.normals).mean() < 1.5  # the steps of nearest pixels
    assert angles(found, normals).mean() > 4
    assert_close(scaled.normals.norm(dim=0), torch.ones(HEIGHT, WIDTH))


@FACTORS
def test_image_and_truth_show_the_same_part(sample, factor, corner):
    scaled = augment.scale(sample, factor, corner)
    inner = slice(2, -2)
    assert ((scaled.image[0] * 100 - scaled.segmentation).abs() <= 0.5 + 1e-4)[:, inner].all()
    left = corner[0] * (1 - 1 / factor) * WIDTH
    assert_close(scaled.image[0, 0, inner] * 100, ((torch.arange(WIDTH) + 0.5) / factor + left - 0.5)[inner])


@FACTORS
def test_smaller_truth_shows_the_same_part(sample, factor, corner):
    small = replace(sample, segmentation=torch.arange(4).repeat_interleave(6).expand(24, -1))
    scaled = augment.scale(small, factor, corner)
    quarters = (scaled.image[0].view(24, 4, 24, 4).mean((1, 3)) * 100 + 0.5) / 24
    assert ((quarters - scaled.segmentation - 0.5).abs() <= 0.5 + 4 / 24).all()


def test_depth_shrinks_as_things_grow(sample):
    flat = replace(sample, depth=torch.full((1, HEIGHT, WIDTH), 3.0))
    assert_close(augment.scale(flat, 1.5, (0.2, 0.2)).depth, torch.full((1, HEIGHT, WIDTH), 2.0))


def test_what_is_unknown_stays_unknown(sample):
    blank = replace(
        sample, depth=0 * sample.depth, normals=0 * sample.normals, segmentation=0 * sample.segmentation - 1
    )
    scaled = augment.scale(blank, 1.2, (0.5, 0.5))
    assert not scaled.depth.any()
    assert not scaled.normals.any()
    assert (scaled.segmentation == -1).all()


def test_scaling_by_one_changes_nothing(sample):
    scaled = augment.scale(sample, 1.0, (0.7, 0.1))
    for field in fields(sample):
        assert_close(getattr(scaled, field.name), getattr(sample, field.name))


def test_a_batch_is_scaled_as_its_samples_are(sample):
    batch = augment.scale(collate([sample, sample]), 1.5, (0.4, 0.9))
    one = augment.scale(sample, 1.5, (0.4, 0.9))
    for field in fields(sample):
        assert_close(getattr(batch, field.name)[1], getattr(one, field.name))


def test_boxes_follow_and_leave(sample):
    scaled = augment.scale(sample, 2.0, (1.0, 1.0))
    expected = [[0.0, 0.0, 44.0, 64.0], [24.0, 4.0, 84.0, 24.0], [0.0] * 4, [0.0] * 4]
    assert scaled.boxes.tolist() == expected
    assert scaled.labels.tolist() == [5, 7, -1, -1]


def test_keypoints_follow(sample):
    maps = torch.zeros(48, HEIGHT, WIDTH)
    maps[3, 60, 30] = 1
    scaled = augment.scale(replace(sample, keypoints=maps), 2.0, (0.0, 1.0)).keypoints
    row, column = divmod(int(scaled[3].argmax()), WIDTH)
    assert abs(row - (60.5 - 48) * 2) <= 1
    assert abs(column - 30.5 * 2) <= 1
    assert not scaled[[2, 4]].any()


@pytest.mark.parametrize(("factor", "corner"), [(0.5, (0, 0)), (float("nan"), (0, 0)), (1.5, (0, 1.1)), (1.5, (-1, 0))])
def test_bad_arguments_are_refused(sample, factor, corner):
    with pytest.raises(ValueError, match=r"factor is|corner is"):
        augment.scale(sample, factor, corner)


@pytest.fixture(scope="module")
def batch():
    return Rooms("train", n=4, size=32, out=16).batch(range(4))


def test_flipping_twice_changes_nothing(batch):
    twice = augment.flip(augment.flip(batch))
    for field in fields(batch):
        assert_close(getattr(twice, field.name), getattr(batch, field.name))


def test_a_batch_is_flipped_as_its_samples_are(batch):
    flipped = augment.flip(batch)
    for i in range(4):
        one = augment.flip(batch.map(lambda values, i=i: values[i]))
        for field in fields(batch):
            assert_close(getattr(one, field.name), getattr(flipped, field.name)[i])


def test_boxes_move_to_the_other_side(batch):
    width = batch.image.shape[-1]
    boxes = torch.tensor([[[2.0, 5.0, 10.0, 9.0], [0.0, 0.0, 0.0, 0.0]]])
    flipped = augment.flip(replace(batch, boxes=boxes)).boxes
    assert_close(flipped, torch.tensor([[[width - 10.0, 5.0, width - 2.0, 9.0], [0.0, 0.0, 0.0, 0.0]]]))


def test_the_left_corner_becomes_the_right_one(batch):
    maps = torch.zeros_like(batch.keypoints)
    first = layout.FIRST[0]
    maps[:, first + 1, 3, 2] = 1  # the second of the four at the ceiling
    flipped = augment.flip(replace(batch, keypoints=maps)).keypoints
    assert (flipped.sum(dim=(2, 3)).argmax(dim=1) == first + 2).all()
    assert (flipped[:, first + 2, 3, -3] == 1).all()


def test_what_a_sample_lacks_it_still_lacks(batch):
    bare = replace(batch, keypoints=None, boxes=None, labels=None, room=None)
    flipped = augment.flip(bare)
    assert flipped.keypoints is None
    assert flipped.boxes is None
    assert_close(flipped.image, batch.image.flip(-1))


def test_a_batch_is_augmented_sample_by_sample_and_the_same_for_the_same_numbers(sample):
    batch = collate([sample] * 24)
    draws, others = (torch.rand(24, augment.DRAWS, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
    changed, again = (augment.augment(batch, draws) for _ in range(2))
    for name, values in vars(changed).items():
        assert torch.equal(values, getattr(again, name)), name
    assert not torch.equal(changed.image, augment.augment(batch, others).image)
    across = changed.image[:, 0].diff(dim=-1).mean((1, 2)) * 100  # one class a pixel, as in the image, before
    mirrored = across < 0
    factors = 1 / across.abs()
    assert 0 < mirrored.sum() < 24
    assert {round(factor, 1) for factor in factors.tolist()} == {1.0, 1.2, 1.5}
    shown = changed.segmentation - changed.image[:, 0] * 100
    assert (shown.abs() <= 0.5 + 1e-4)[..., 2:-2].all()
    assert_close(changed.depth.amax(dim=(1, 2, 3)) * factors <= sample.depth.max() + 0.01, torch.ones(24).bool())
