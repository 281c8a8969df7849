"""Classification and detection: against loops over cells and objects, and on boxes whose overlap is known."""

import math

import pytest
import torch

from gradnorm_studies.vision.data.rooms import ROOMS, Rooms
from gradnorm_studies.vision.data.sample import CLASSES, Sample
from gradnorm_studies.vision.detection import CLASSIFICATION, DETECTION, NARROWEST, SPREAD, detect

SIDE, CELLS = 64, 16


def truth(*images):
    """Images of no content with objects (class, left, top, right, bottom), padded to four."""
    padded = [[*objects, *[(-1, 0, 0, 0, 0)] * (4 - len(objects))] for objects in images]
    table = torch.tensor(padded, dtype=torch.float32)
    n = len(images)
    return Sample(
        torch.zeros(n, 3, SIDE, SIDE),
        torch.zeros(n, CELLS, CELLS, dtype=torch.long),
        torch.ones(n, 1, CELLS, CELLS),
        torch.zeros(n, 3, CELLS, CELLS),
        boxes=table[:, :, 1:],
        labels=table[:, :, 0].long(),
        room=torch.arange(n) % len(ROOMS),
    )


TWO = truth(
    [(3, 4.0, 8.0, 20.0, 40.0), (9, 30.0, 10.0, 63.0, 21.0)],
    [(3, 8.0, 8.0, 28.0, 40.0), (0, 33.0, 34.0, 60.0, 62.0), (3, 40.0, 2.0, 50.0, 12.0)],
)


def perfect(sample):
    maps = torch.zeros(len(sample.image), DETECTION.head.channels, CELLS, CELLS)
    maps[:, : len(CLASSES)] = -30.0
    for image, label, box in objects(sample):
        left, top, right, bottom = (side / 4 for side in box)
        x, y = (left + right) / 2, (top + bottom) / 2
        at = (image, slice(len(CLASSES), None), int(y), int(x))
        maps[image, label, int(y), int(x)] = 30.0
        maps[at] = torch.tensor([x % 1, y % 1, math.log(right - left), math.log(bottom - top)])
    return maps


def objects(sample):
    for image, (boxes, labels) in enumerate(zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True)):
        yield from ((image, label, box) for label, box in zip(labels, boxes, strict=True) if label >= 0)


def errors(task, predicted, sample):
    found = task.errors()
    for one in range(len(predicted)):  # a batch of one each: sums over batches must come out right
        found.update(predicted[one : one + 1], sample.map(lambda values: values[one : one + 1]))  # noqa: B023
    return dict(zip(found.names, found.compute(), strict=True))


def test_what_is_perfect_has_no_loss_and_no_error():
    maps = perfect(TWO)
    assert DETECTION.loss(maps, TWO).item() == pytest.approx(0, abs=1e-4)
    assert errors(DETECTION, maps, TWO) == pytest.approx({"100−AP50 %": 0, "100−AP %": 0})
    boxes, labels, scores = detect(maps, SIDE)
    assert labels[0, :2].sort().values.tolist() == [3, 9]
    assert boxes[0][labels[0] == 9][0].tolist() == pytest.approx([30, 10, 63, 21], abs=1e-4)
    assert (scores[0, :2] > 0.99).all()
    assert (scores[0, 2:] < 0.01).all()


def test_the_loss_is_that_of_a_loop_over_cells_and_objects():
    torch.manual_seed(0)
    maps = torch.randn(2, DETECTION.head.channels, CELLS, CELLS, dtype=torch.float64)
    wanted = torch.zeros(2, len(CLASSES), CELLS, CELLS, dtype=torch.float64)
    total, count = 0.0, 0
    for image, label, box in objects(TWO):
        left, top, right, bottom = (side / 4 for side in box)
        x, y, count = (left + right) / 2, (top + bottom) / 2, count + 1
        wide, high = (max(SPREAD * side, NARROWEST) for side in (right - left, bottom - top))
        for row in range(CELLS):
            for column in range(CELLS):
                dx, dy = (column - int(x)) / wide, (row - int(y)) / high
                bump = math.exp(-(dx**2 + dy**2) / 2)
                wanted[image, label, row, column] = max(wanted[image, label, row, column].item(), bump)
        found = maps[image, len(CLASSES) :, int(y), int(x)].tolist()
        total += abs(found[0] - x % 1) + abs(found[1] - y % 1)
        total += abs(found[2] - math.log(right - left)) + abs(found[3] - math.log(bottom - top))
    chance = torch.sigmoid(maps[:, : len(CLASSES)] - 2.19)
    hits = (1 - chance) ** 2 * chance.log()
    alarms = (1 - wanted) ** 4 * chance**2 * (1 - chance).log()
    total -= torch.where(wanted == 1, hits, alarms).sum().item()
    assert DETECTION.loss(maps, TWO).item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(("share", "overlaps"), [(0.1, 7), (0.25, 3), (0.4, 0)])
def test_boxes_that_are_off_count_at_the_overlaps_that_they_reach(share, overlaps):
    """Moved by a share s of its width, a box overlaps by (1 − s) / (1 + s): 0.82, 0.6, 0.43."""
    box = (3, 8.0, 8.0, 28.0, 40.0)
    moved = (3, box[1] + 20 * share, 8.0, box[3] + 20 * share, 40.0)
    found = errors(DETECTION, perfect(truth([moved])), truth([box]))
    assert found["100−AP50 %"] == pytest.approx(0 if overlaps else 100)
    assert found["100−AP %"] == pytest.approx(100 - 10 * overlaps)


def test_another_class_is_another_object():
    sample = truth([(3, 8.0, 8.0, 28.0, 40.0)])
    assert errors(DETECTION, perfect(truth([(4, 8.0, 8.0, 28.0, 40.0)])), sample)["100−AP50 %"] == 100


def test_images_without_objects_teach_where_there_is_none():
    empty = truth([], [])
    maps = torch.zeros(2, DETECTION.head.channels, CELLS, CELLS, requires_grad=True)
    loss = DETECTION.loss(maps, empty)
    loss.backward()
    assert loss.isfinite()
    assert (maps.grad[:, : len(CLASSES)] > 0).all()
    assert not maps.grad[:, len(CLASSES) :].any()
    assert errors(DETECTION, maps.detach(), empty) == {"100−AP50 %": 100, "100−AP %": 100}


def test_rendered_rooms_can_be_detected_perfectly():
    sample = Rooms("train", n=4, size=SIDE, out=CELLS).batch(range(4))
    assert errors(DETECTION, perfect(sample), sample)["100−AP50 %"] < 15  # where no two objects share a cell


def test_the_kind_of_room():
    sample = truth([], [], [], [])
    third = torch.tensor([[0.0, 0.0, 5.0, 0.0]]).expand(4, -1)
    assert errors(CLASSIFICATION, third, sample) == {"classification error %": 75}
    assert CLASSIFICATION.drawn(third[0], sample) == {"kind": ROOMS[2]}
    certain = 50 * torch.eye(4)
    assert CLASSIFICATION.loss(certain, sample).item() == pytest.approx(0, abs=1e-6)
    assert errors(CLASSIFICATION, certain, sample) == {"classification error %": 0}
