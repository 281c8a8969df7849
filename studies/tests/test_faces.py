"""The data are read in both forms, and metrics, losses and network are those of the supplement."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from faces_files import FACE, line, write_official, write_prepared
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.engine.executor import reproduce
from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.engine.pool import InProcess
from gradnorm_studies.engine.training import advance
from gradnorm_studies.faces import data
from gradnorm_studies.faces.data import Entry, Faces
from gradnorm_studies.faces.study import (
    CLAIMS,
    METRIC,
    FacesConfig,
    FacesStudy,
    Network,
    Recognition,
    hold_out,
    measure,
    stuck,
    trunk,
)

# ------------------------------------------------------------------------------------------------------------- data


def test_the_official_folder_and_the_file_prepared_from_it_are_the_same(tmp_path):
    root = write_official(tmp_path / "MTFL")
    out = data.prepare(root, tmp_path / "made" / "faces.npz")
    direct, prepared = (data.load.__wrapped__(str(path)) for path in (root, out))
    assert {split: len(faces) for split, faces in direct.items()} == {"train": 4, "test": 2}
    for split in direct:
        for name in ("images", "points", "labels"):
            assert torch.equal(getattr(direct[split], name), getattr(prepared[split], name))


def test_attributes_are_decoded(tmp_path):
    faces = data.load.__wrapped__(str(write_official(tmp_path)))["train"]
    # Male and female in turn; smiling; no glasses; poses 1, 2, 3 (frontal), 4.
    assert faces.labels.tolist() == [[0, 1, 0, 1], [1, 1, 0, 1], [0, 1, 0, 0], [1, 1, 0, 1]]


def test_images_are_normalized_each_for_itself(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 40), dtype=np.uint8)
    image[0] = 7
    faces = data.load.__wrapped__(str(write_prepared(tmp_path / "faces.npz", train_image=image)))["train"]
    assert faces.images.shape == (30, 1, 40, 40)
    assert (faces.images[0] == 0).all()
    torch.testing.assert_close(faces.images[1:].mean(dim=(1, 2, 3)), torch.zeros(29), atol=1e-5, rtol=0)
    torch.testing.assert_close(faces.images[1:].std(dim=(1, 2, 3)), torch.ones(29))


class Still:
    """Random numbers of a detector without scatter."""

    def normal(self, scale):
        return np.zeros(len(scale))


def test_landmarks_are_where_they_were_in_the_image(tmp_path):
    """A bright square on a landmark is found there again, in a crop that reaches beyond the image too."""
    for shift in (0.0, -70.0):
        points = FACE + shift
        for at in points:
            pixels = np.zeros((240, 200), dtype=np.uint8)
            x, y = np.rint(at).astype(int)
            pixels[y - 3 : y + 3, x - 3 : x + 3] = 255
            Image.fromarray(pixels).save(tmp_path / "face.png")
            image, found = data.crop(Entry(tmp_path / "face.png", points, {}), Still())
            rows, columns = np.mgrid[:40, :40] + 0.5
            center = [(image * axis).sum() / image.sum() for axis in (columns, rows)]
            index = np.abs(points - at).sum(axis=1).argmin()
            np.testing.assert_allclose(40 * found[index], center, atol=0.05)


def test_a_crop_beyond_the_image_is_black_there(tmp_path):
    Image.fromarray(np.full((240, 200), 255, dtype=np.uint8)).save(tmp_path / "face.png")
    image, _ = data.crop(Entry(tmp_path / "face.png", FACE - 98, {}), Still())
    assert image[0, 0] == 0
    assert image[-1, -1] == 255


def test_the_box_moves_and_grows_with_the_face():
    box, shift = np.array(data.box_of(FACE, Still())), np.array([5, -7, 0])
    np.testing.assert_allclose(data.box_of(FACE + shift[:2], Still()), box + shift)
    np.testing.assert_allclose(data.box_of(3 * FACE, Still()), 3 * box)


def test_a_nose_to_the_right_moves_the_box_to_the_left():
    turned = FACE.copy()
    turned[2, 0] += 10
    (left, _, side), (before, _, size) = data.box_of(turned, Still()), data.box_of(FACE, Still())
    assert left + side / 2 < before + size / 2


def test_boxes_are_scattered_by_the_faces_place_in_its_list_alone():
    boxes = [data.box_of(FACE, np.random.default_rng([0, i])) for i in (0, 0, 1)]
    assert boxes[0] == boxes[1] != boxes[2]


# -------------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("root", ["", "nowhere"])
def test_missing_data_are_named_before_anything_is_trained(root):
    with pytest.raises(UsageError, match=r"--root.*gradnorm data faces|nowhere.*TCDCN") as error:
        FacesStudy(FacesConfig(root=root)).jobs()
    assert data.SOURCE in str(error.value)


def test_an_empty_folder_lacks_both_lists(tmp_path):
    assert [part.is_complete for part in data.check(tmp_path)] == [False, False]
    with pytest.raises(UsageError, match=r"training\.txt: missing; .*testing\.txt: missing"):
        data.require(tmp_path)


def test_a_missing_image_is_counted_and_named(tmp_path):
    root = write_official(tmp_path)
    assert all(part.is_complete for part in data.check(root))
    (root / "lfw_5590" / "face 2.jpg").unlink()
    train, test = data.check(root)
    assert "3 of 4 images" in train.found
    assert "face 2.jpg" in train.found
    assert test == (str(root / "testing.txt"), "2 of 2 images", True)
    with pytest.raises(UsageError, match=r"face 2\.jpg"):
        data.prepare(root, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("lfw_5590\\face 0.jpg 1 2 3", "line 2: expected a path"),
        (line("a.jpg").replace("100.000000", "nan"), "line 2: expected a path"),
        (line("a.jpg", attributes=(1, 1, 2, 6)), "line 2: pose is 6"),
        (line("a.jpg", attributes=(0, 1, 2, 3)), "line 2: gender is 0"),
        (line("a.jpg", points=np.ones((5, 2))), "line 2: all landmarks"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, message):
    root = write_official(tmp_path)
    (root / "training.txt").write_text(f"{line('lfw_5590/face 0.jpg')}\n{bad}\n")
    with pytest.raises(UsageError, match=message):
        data.require(root)


def test_a_damaged_image_is_named(tmp_path):
    root = write_official(tmp_path)
    (root / "AFLW" / "face 1.jpg").write_bytes(b"not an image")
    with pytest.raises(UsageError, match=r"face 1\.jpg cannot be read"):
        data.prepare(root, tmp_path / "out.npz")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_pose": None}, "without test_pose"),
        ({"train_points": np.zeros((30, 5, 3))}, r"train_points has shape \[30, 5, 3\]"),
        ({"train_smile": np.zeros(29)}, r"train_smile has shape \[29\]"),
        ({"test_pose": np.full(30, 5)}, r"test_pose has the values 5 … 5, where 0 … 4"),
        ({"test_points": np.full((30, 5, 2), np.nan)}, "not finite"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path, changed, message):
    path = write_prepared(tmp_path / "faces.npz", **changed)
    with pytest.raises(UsageError, match=message):
        data.load.__wrapped__(str(path))


ARRAY = io.BytesIO()
np.save(ARRAY, np.zeros(3))


@pytest.mark.parametrize("content", [b"text", b"", b"PK\x03\x04 cut off", ARRAY.getvalue()])
def test_another_file_is_no_file_of_faces(tmp_path, content):
    path = tmp_path / "faces.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a file of arrays"):
        data.require(path)
    with pytest.raises(UsageError, match="only the official folder needs preparing"):
        data.prepare(path, tmp_path / "out.npz")


def test_a_file_that_was_damaged_later_is_refused(tmp_path):
    path = write_prepared(tmp_path / "faces.npz")
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)  # within the first array's pixels
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is damaged"):
        data.load.__wrapped__(str(path))


# ------------------------------------------------------------------------------------------------ metrics and losses


def faces_of(n=4):
    points = torch.tensor(FACE / 200, dtype=torch.float32).repeat(n, 1, 1)
    return Faces(torch.zeros(n, 1, 40, 40), points, torch.zeros(n, 4, dtype=torch.int64))


def scores_of(labels):
    """[n, 4] → [4, n, 2], scores that predict these labels."""
    return torch.nn.functional.one_hot(labels, 2).float().transpose(0, 1)


def test_metrics_on_values_made_by_hand():
    faces = faces_of()
    eyes = faces.eye_distances[0]
    off = torch.zeros(4, 5, 2)
    off[0, :, 0] = 0.8 * eyes  # 80 %: the one failure
    off[1, 0, 1] = 0.25 * eyes  # one landmark of five: 5 %
    labels = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    found = measure(faces.points + off, scores_of(labels), faces)
    assert found.pop(METRIC.name) == pytest.approx((21.25 * 100 * 50 * 25 * 12.5) ** 0.2)  # pose: half a face
    expected = {"landmark": 21.25, "gender": 100.0, "smile": 50.0, "glasses": 25.0, "pose": 0.0}
    assert found.pop("failure rate %") == 25.0
    assert found == pytest.approx({f"{name} error %": value for name, value in expected.items()})


def test_a_prediction_without_errors_has_none():
    faces = faces_of()
    found = measure(faces.points, scores_of(faces.labels), faces)
    assert {name: value for name, value in found.items() if name != METRIC.name} == dict.fromkeys(
        found.keys() - {METRIC.name}, 0
    )
    assert found[METRIC.name] == pytest.approx(12.5)


def test_gain_over_single_is_the_mean_over_tasks():
    study = FacesStudy()
    names = [f"{name} error %" for name in ("landmark", "gender", "smile", "glasses", "pose")]
    ends = {"single": [10.0, 20.0, 20.0, 10.0, 40.0], "equal": [5.0, 20.0, 25.0, 10.0, 40.0]}
    rows = {method: [(9, name, value) for name, value in zip(names, end, strict=True)] for method, end in ends.items()}
    runs = {(problem, method, 0): rows[method] for problem in study.problems for method in ends}
    found = study.derive(Metrics(runs))
    assert found.final("crop", "equal", "Δm %") == pytest.approx([(50 - 25) / 5])
    assert found.final("eye distance", "single", "Δm %") == pytest.approx([0])


def test_stuck_is_less_than_a_percent_below_the_majority():
    runs = {("crop", "equal", seed): [(9, "glasses error %", v)] for seed, v in enumerate((8.0, 6.0, 9.5))}
    margins = stuck("glasses", "equal")(Metrics(runs), "crop").margins
    assert (margins > 0).tolist() == [True, False, True]


def test_validation_faces_are_the_same_for_all_runs_and_not_trained_on(tmp_path):
    faces = data.load.__wrapped__(str(write_prepared(tmp_path / "faces.npz")))["train"]
    (train, validation), (_, again) = hold_out(faces, 10), hold_out(faces, 10)
    assert (len(train), len(validation)) == (20, 10)
    assert torch.equal(validation.images, again.images)
    joined = torch.cat([train.points, validation.points]).flatten(1)
    assert len(joined.unique(dim=0)) == 30
    with pytest.raises(UsageError, match="--validation is 30"):
        hold_out(faces, 30)


@pytest.fixture
def config(tmp_path):
    path = write_prepared(tmp_path / "faces.npz")
    return FacesConfig(root=str(path), steps=4, batch=8, validation=10)


def test_the_network_is_zhangs():
    network = Network(torch.zeros(5, 2), "abs-tanh")
    shapes = [tuple(p.shape) for name, p in network.trunks.named_parameters() if name.endswith("weight")]
    assert shapes == [(16, 1, 5, 5), (48, 16, 3, 3), (64, 48, 3, 3), (64, 64, 2, 2), (100, 256)]
    assert network.last_shared.weight.shape == (100, 256)
    points, scores = network(torch.zeros(3, 1, 40, 40))
    assert (points.shape, scores.shape) == ((3, 5, 2), (4, 3, 2))
    assert (network.trunks[0](torch.randn(3, 1, 40, 40)) >= 0).all()


@pytest.mark.parametrize(("name", "activation"), [("abs-tanh", lambda x: torch.tanh(x).abs()), ("relu", torch.relu)])
def test_the_activation_may_follow_the_pooling(name, activation):
    """`|tanh x|` does not rise, but its second part does."""
    layers = trunk(name)
    x = images = torch.randn(3, 1, 40, 40)
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            x = activation(layer(x))
        elif isinstance(layer, nn.MaxPool2d | nn.Flatten):
            x = layer(x)
    torch.testing.assert_close(layers(images), x)


def test_problems_differ_in_the_unit_of_the_landmarks_loss_alone(config):
    values = {}
    for problem in FacesStudy().problems:
        torch.manual_seed(0)
        values[problem] = Recognition(config, Job(problem, "equal", 0, 1e-3)).losses(0)
    crop, eyes = values["crop"], values["eye distance"]
    assert torch.equal(crop[1:], eyes[1:])
    assert 0.06 < crop[0] / eyes[0] < 1  # the squared distance between the eyes, about 1/3


@pytest.mark.parametrize(("unit", "problem"), [("crop", "crop"), ("eye-distance", "eye distance")])
def test_a_problem_can_be_run_alone(config, unit, problem):
    alone, both = FacesStudy(replace(config, unit=unit)), FacesStudy(config)
    assert alone.jobs() == [job for job in both.jobs() if job.problem == problem]
    assert f" --unit {unit}" in alone.command()


def test_the_loss_in_crop_units_is_the_mean_square_over_coordinates(config):
    run = Recognition(config, Job("crop", "equal", 0, 1e-3))
    run.model.heads[0].weight.data.zero_()
    run.model.heads[0].bias.data.fill_(0.1)  # from the mean face
    run._train = replace(run._train, points=run.model.mean_face.expand(20, 5, 2))
    assert run.losses(0)[0].item() == pytest.approx(0.01)


@pytest.mark.parametrize("method", ["equal", "gradnorm", "closed-form", "single"])
def test_a_run_trains_and_evaluates(config, method):
    run = FacesStudy(config).experiment(Job("eye distance", method, 0, 1e-3))
    assert len(run.model.trunks) == (5 if method == "single" else 1)
    before = run.model.trunks[0][0].weight.clone()
    rows = []
    for step in range(2):
        advance(run, step, rows, record=step == 0)
    assert not torch.equal(run.model.trunks[0][0].weight, before)
    assert {name for _, name, _ in rows} >= {METRIC.name, f"validation/{METRIC.name}", "weight/pose", "loss/landmarks"}


def test_claims_name_both_updates_and_the_columns_of_table_3():
    texts = [claim.text for claim in CLAIMS]
    assert len(texts) == len(set(texts))
    for rule in ("GradNorm", "The closed form"):
        for column in ("landmarks", "failure rate", "gender", "smile"):
            assert f"{rule} ends below equal weights in {column}" in texts


def test_the_report_has_table_3_beside_ours(config, tmp_path):
    study = FacesStudy(replace(config, methods="equal", seeds=1))
    names = [quantity.name for quantity in (study.metric, *study.quantities) if quantity.name != "Δm %"]
    runs = {(p, "equal", 0): [(9, name, 8.0) for name in names] for p in study.problems}
    (table,) = study.more_tables(Metrics(runs))
    assert [row[:2] for row in table.rows[3:]] == [("crop", "equal"), ("eye distance", "equal")]
    assert all(len(row) == len(table.header) for row in table.rows)


def test_runs_are_compared_where_they_are_best_by_validation(config, tmp_path):
    study = FacesStudy(replace(config, methods="equal", seeds=1))
    names = [quantity.name for quantity in (study.metric, *study.quantities) if quantity.name != "Δm %"]
    names += [f"validation/{study.metric.name}", *(f"weight/{task}" for task in study.tasks("crop"))]
    rows = [(step, name, value) for step, value in enumerate((9.0, 5.0, 8.0)) for name in names]
    report = study.report(Metrics({(p, "equal", 0): rows for p in study.problems}), tmp_path)
    assert report.data["ends.json"]["ends"] == {problem: {"equal": [5.0]} for problem in study.problems}
    first, second = report.tables[0], report.tables[2]
    assert [(table.title, table.rows[0][2]) for table in (first, second)] == [
        ("The best step by validation: crop", "5"),
        ("Where each method ends: crop", "8"),
    ]
    (weights,) = (table for table in report.tables if table.title == "The weights at the end: crop")
    assert weights.rows == [("equal", *["8"] * 5)]


def test_where_the_data_lie_is_no_part_of_a_run_and_not_told(config, tmp_path):
    moved = tmp_path / "moved.npz"
    moved.write_bytes(Path(config.root).read_bytes())
    for root in (config.root, str(moved)):
        study = FacesStudy(replace(config, root=root, seeds=1, methods="equal", record_every=2))
        report = reproduce(study, tmp_path / "out", InProcess, Console(quiet=True))
    assert "--root moved.npz" in report.command
    written = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".json", ".md", ".html")]
    assert len(written) > 4
    assert not [path for path in written if str(tmp_path) in path.read_text()]
