"""Losses and metrics of the vision tasks, on truths whose errors are known."""

import math
import pickle

import pytest
import torch

from gradnorm_studies.vision.data.sample import Sample
from gradnorm_studies.vision.detection import CLASSIFICATION, DETECTION
from gradnorm_studies.vision.tasks import SETS, TASKS


def truth(b=2, h=6, w=8):
    torch.manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(b, 3, h, w), dim=1)
    segmentation = torch.randint(13, (b, h, w))
    depth = 1 + torch.rand(b, 1, h, w)
    heatmaps = torch.zeros(b, 48, h, w)
    heatmaps[:, 5, 2, 3] = heatmaps[:, 7, 4, 1] = 1.0
    # A quarter of the pixels is unknown.
    segmentation[:, : h // 2, : w // 2] = -1
    depth[:, :, : h // 2, : w // 2] = 0
    normals[:, :, : h // 2, : w // 2] = 0
    return Sample(torch.zeros(b, 3, 4 * h, 4 * w), segmentation, depth, normals, heatmaps)


def perfect(sample):
    classes = torch.nn.functional.one_hot(sample.segmentation.clamp(min=0), 13).movedim(-1, 1).float()
    return {
        "segmentation": 50 * classes,
        "depth": sample.depth.clone(),
        "normals": 3 * sample.normals,
        "keypoints": sample.keypoints.clone(),
    }


def errors(task, predicted, sample):
    found = TASKS[task].errors()
    for one in range(len(predicted)):  # a batch of one each: sums over batches must come out right
        found.update(predicted[one : one + 1], sample.map(lambda values: values[one : one + 1]))  # noqa: B023
    return dict(zip(found.names, found.compute(), strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_perfect_has_no_loss_and_no_error(task):
    sample = truth()
    predicted = perfect(sample)[task]
    assert TASKS[task].loss(predicted, sample).item() == pytest.approx(0, abs=1e-6)
    if task == "segmentation":  # of 13 classes, those that do not occur count for none
        assert errors(task, predicted, sample)["pixel error %"] == pytest.approx(0, abs=1e-4)
    else:
        assert list(errors(task, predicted, sample).values()) == pytest.approx(
            [0] * len(TASKS[task].errors.names), abs=0.1
        )


@pytest.mark.parametrize("task", ["segmentation", "depth", "normals"])
def test_unknown_pixels_count_for_nothing(task):
    sample = truth()
    predicted = torch.randn(2, TASKS[task].head.channels, 6, 8, requires_grad=True)
    TASKS[task].loss(predicted, sample).backward()
    unknown = (sample.depth == 0).expand_as(predicted)
    assert not predicted.grad[unknown].any()
    assert predicted.grad[~unknown].any()
    other = torch.where(unknown, 7.0, predicted.detach())
    assert errors(task, other, sample) == errors(task, predicted.detach(), sample)


def test_depth_errors_in_meters():
    sample = truth()
    found = errors("depth", sample.depth + 0.5, sample)
    known = sample.depth[sample.depth > 0]
    assert found["depth RMS m"] == pytest.approx(0.5, abs=1e-5)
    assert found["depth abs m"] == pytest.approx(0.5, abs=1e-5)
    assert found["depth rel %"] == pytest.approx(100 * (0.5 / known).mean().item(), rel=1e-4)


@pytest.mark.parametrize("degrees", [10.0, 20.0, 27.0, 40.0])
def test_normals_that_are_turned(degrees):
    sample = truth()
    n = sample.normals
    across = torch.nn.functional.normalize(torch.linalg.cross(n, torch.randn_like(n), dim=1), dim=1)
    angle = math.radians(degrees)
    found = errors("normals", math.cos(angle) * n + math.sin(angle) * across, sample)
    assert found["normals mean °"] == pytest.approx(degrees, abs=0.01)
    assert found["normals median °"] == pytest.approx(degrees, abs=0.01)
    assert found["1−|cos|"] == pytest.approx(1 - math.cos(angle), abs=1e-5)
    for limit in (11.25, 22.5, 30):
        assert found[f"normals >{limit:g}° %"] == (100 if degrees > limit else 0)


def test_classes_that_are_confused():
    sample = truth()
    sample.segmentation[sample.segmentation >= 0] %= 2
    swapped = perfect(sample)["segmentation"].roll(1, dims=1)  # 0 is called 1, and 1 is called 2
    found = errors("segmentation", swapped, sample)
    assert found["pixel error %"] == 100
    assert found["100−mIoU %"] == 100


def test_keypoints_that_are_off_by_three_cells():
    sample = truth()
    found = errors("keypoints", sample.keypoints.roll(3, dims=3), sample)
    assert found["keypoint error %"] == pytest.approx(100 * 3 / math.hypot(6, 8))


def test_keypoints_are_missing_where_a_data_set_has_none():
    sample = truth()
    without = Sample(sample.image, sample.segmentation, sample.depth, sample.normals)
    with pytest.raises(ValueError, match="no keypoints"):
        TASKS["keypoints"].loss(torch.zeros(2, 48, 6, 8), without)


def test_the_papers_sets():
    assert all(len(tasks) == 3 for tasks in SETS.values())
    assert {task for tasks in SETS.values() for task in tasks} == set(TASKS)


def test_tasks_can_be_sent_to_other_processes():
    for task in (*TASKS.values(), CLASSIFICATION, DETECTION):
        assert pickle.loads(pickle.dumps(task)) == task
