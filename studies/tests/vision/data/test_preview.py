"""`gradnorm data rooms --show` draws a contact sheet, and says what it needs."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gradnorm_studies import cli
from gradnorm_studies.vision import drawing
from gradnorm_studies.vision.data import preview as show
from gradnorm_studies.vision.data.geometry import places
from gradnorm_studies.vision.data.rooms import ROOMS, Rooms
from gradnorm_studies.vision.data.sample import CLASSES, VISIBLE


def invoke(*arguments):
    return CliRunner().invoke(cli.build(), ["data", "rooms", *arguments], env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_sheet_is_written(tmp_path):
    path = tmp_path / "sheet.png"
    done = invoke("--show", "--n", "2", "--style", "sparse", "--out", str(path))
    assert done.exit_code == 0, done.output
    assert "sheet.png" in done.output.replace("\n", "")
    pixels = np.asarray(Image.open(path))
    assert pixels.std() > 20


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((), "--show"),
        (("--show", "--n", "0"), "n is 0"),
        (("--show", "--split", "val"), "split is 'val'"),
        (("--show", "--style", "empty"), "style is 'empty'"),
    ],
)
def test_what_cannot_be_shown_is_explained(arguments, found, tmp_path):
    done = invoke("--out", str(tmp_path / "sheet.png"), *arguments)
    assert done.exit_code == 2
    assert found in done.output
    assert not list(tmp_path.iterdir())


def test_a_view_has_the_sample_s_keypoints_and_boxes(monkeypatch, tmp_path):
    rooms = Rooms("test", n=3, size=64, out=64)
    drawn = []
    monkeypatch.setattr(drawing, "contact_sheet", lambda path, views, names: drawn.extend(views))
    show.contact_sheet(rooms, tmp_path / "none.png")
    for i, view in enumerate(drawn):
        scene = rooms.scene(i)
        assert view.title == f"test {i}: {ROOMS[scene.room]}"
        assert np.abs(view.keypoints - scene.view.keypoints * 64).max() <= 0.5 + 1e-3
        assert len(view.boxes) == len(view.labels) == (rooms[i].labels >= 0).sum()
        assert view.normals.shape == (64, 64, 3)


def test_every_column_of_the_sheet_has_a_title_and_every_room_its_name(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(drawing, "save", lambda figure, path, few_colors: drawn.append(figure))
    show.contact_sheet(Rooms("test", n=3, size=64, out=64), tmp_path / "none.png")
    titles = [ax.get_title(loc="left") for ax in drawn[0].axes]
    assert titles[:10] == ["image", "classes", "depth (0–7 m)", "normals", "keypoints, boxes"] * 2
    assert not any(titles[10:])
    texts = [text.get_text() for ax in drawn[0].axes for text in ax.texts]
    assert [sum(text.startswith(f"test {i}: ") for text in texts) for i in range(3)] == [1, 1, 1]


def test_a_networks_keypoints_are_those_that_the_truth_has(tmp_path):
    truth = Rooms("test", n=1, size=64, out=16)[0]
    visible = truth.keypoints.amax(dim=(1, 2)) > VISIBLE
    heatmaps = torch.zeros(48, 16, 16)
    heatmaps[:, 3, 5] = 0.1
    assert places(heatmaps, truth).tolist() == [[22.0, 14.0]] * int(visible.sum())


def test_a_comparison_shows_every_view_of_every_task(tmp_path):
    truth = show.annotated(Rooms("test", n=1, size=64, out=16)[0])
    flat = drawing.AnnotatedImage("flat", truth.image, depth=np.full((16, 16), 7.0), keypoints=np.zeros((1, 2)))
    path = drawing.comparison(tmp_path / "c.png", [{"truth": truth, "flat": flat}], ("depth", "keypoints"), CLASSES)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    tiles = pixels[:, : pixels.shape[1] // 5 * 5].reshape(len(pixels), 5, -1, 3)
    darkest = tiles.sum(axis=3).min(axis=(0, 2))
    assert (darkest < 600).all()  # the image, and two tasks twice


def test_every_class_has_a_color():
    assert len(set(drawing.CLASS_COLORS)) == len(CLASSES)
