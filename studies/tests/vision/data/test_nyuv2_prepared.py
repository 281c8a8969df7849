"""The small file of NYUv2: what `prepare` writes is what the larger forms hold, and faults of it are named."""

import shutil

import numpy as np
import pytest
import torch

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.vision.data.nyuv2 import HEADER, NYUv2, check, prepare
from gradnorm_studies.vision.data.nyuv2.official import LABELED, MAPPING, SPLITS
from gradnorm_studies.vision.data.nyuv2.prepared import PreparedScenes

from .scenes import angles

SIZE, OUT = (96, 128), (24, 32)
SPLIT_NAMES = ("train", "test")


@pytest.fixture(scope="module")
def written(official, folders, tmp_path_factory):
    """A file from each of the other forms."""
    found = {}
    for name, root in (("official", official), ("folders", folders)):
        found[name] = tmp_path_factory.mktemp("prepared") / f"{name}.npz"
        prepare(root, found[name])
    return found


@pytest.fixture
def arrays(written):
    with np.load(written["official"]) as file:
        return {name: file[name] for name in file.files}


def saved(path, arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("form", ["official", "folders"])
@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_what_was_written_is_what_the_form_holds(form, split, written, request):
    form_scenes = NYUv2(request.getfixturevalue(form), split, SIZE, OUT)
    file_scenes = NYUv2(written[form], split, SIZE, OUT)
    assert len(file_scenes) == len(form_scenes)
    for expected, found in zip(form_scenes, file_scenes, strict=True):
        assert found.image.shape == (3, *SIZE)
        assert (found.image - expected.image).abs().median() < 0.01
        assert (found.segmentation != expected.segmentation).float().mean() < 0.1
        both = ((found.depth > 0) & (expected.depth > 0))[0]
        assert both.float().mean() > 0.8
        assert ((found.depth - expected.depth).abs() / expected.depth)[:, both].median() < 0.01
        seen = found.normals.any(0) & expected.normals.any(0)
        assert seen.float().mean() > 0.5
        assert angles(found.normals, expected.normals)[seen].median() < 1


def test_the_file_has_the_arrays_that_its_module_lists(arrays):
    kinds = {name: (array.dtype.kind, array.shape) for name, array in arrays.items()}
    assert kinds == {
        "image": ("u", (3, 96, 128, 3)),
        "depth_mm": ("u", (3, 96, 128)),
        "label13": ("u", (3, 96, 128)),
        "normal": ("i", (3, 96, 128, 3)),
        "normal_scale": ("i", ()),
        "names13": ("U", (13,)),
        "intrinsics": ("f", (4,)),
        "train": ("i", (2,)),
        "test": ("i", (1,)),
    }
    assert arrays["image"].dtype == np.uint8
    assert (arrays["label13"][:, :9] == 255).all()  # beyond the crop
    assert arrays["train"].tolist() == [0, 2]  # the official numbers, less one


def test_unknown_pixels_stay_unknown(arrays, tmp_path):
    arrays["label13"][:] = 255
    arrays["depth_mm"][:] = 0
    arrays["normal"][:] = 0
    sample = PreparedScenes(saved(tmp_path / "file.npz", arrays), "train")[0]
    assert (sample.segmentation == -1).all()
    assert not sample.depth.any()
    assert not sample.normals.any()


def test_the_scale_of_normals_is_the_file_s_own_and_its_crop_the_usual(arrays, tmp_path):
    arrays["normal"][:] = np.array([0, 0, -3], np.int8)
    arrays["normal_scale"] = np.array(32)
    sample = PreparedScenes(saved(tmp_path / "file.npz", arrays), "test")[0]
    assert sample.image.shape == (3, 85, 112)
    assert torch.equal(sample.normals, torch.tensor([0.0, 0.0, -1.0])[:, None, None].expand(3, 85, 112))


def without(name):
    return lambda arrays: arrays.pop(name)


FAULTS = {
    "no labels": (without("label13"), r"file.npz cannot be read .*label13"),
    "no split": (without("train"), r"file.npz cannot be read .*train"),
    "narrow depth": (
        lambda arrays: arrays.update(depth_mm=arrays["depth_mm"][:, :, 1:]),
        r"'depth_mm' has shape \(3, 96, 127\), where \(3, 96, 128\)",
    ),
    "gray": (lambda arrays: arrays.update(image=arrays["image"][..., 0]), r"'image' has shape"),
    "forty classes": (lambda arrays: arrays["label13"].fill(39), "'label13' holds class 39"),
    "beyond": (lambda arrays: arrays.update(train=np.array([3])), "images that it does not hold"),
    "empty": (lambda arrays: arrays.update(train=np.array([], int)), "images that it does not hold"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_file_are_named(fault, arrays, tmp_path):
    make, message = FAULTS[fault]
    make(arrays)
    path = saved(tmp_path / "file.npz", arrays)
    with pytest.raises(UsageError, match=message):
        NYUv2(path, "train")
    found = check(path)
    assert not found.is_usable
    assert found.lines[0].remedy


def test_a_file_of_another_kind_is_named(tmp_path):
    path = tmp_path / "file.npz"
    path.write_text("<html>")
    with pytest.raises(UsageError, match=r"file.npz cannot be read \(6 bytes\)"):
        NYUv2(path, "train")


def test_progress_is_told_per_image(folders, tmp_path):
    seen = []
    prepare(folders, tmp_path / "file.npz", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file.zip", "ends in .npz"),
        ("there.npz", "exists. It is left as it is"),
        ("none/file.npz", "create its folder"),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_anything_is_read(name, message, tmp_path):
    (tmp_path / "there.npz").write_text("kept")
    with pytest.raises(UsageError, match=message):
        prepare(tmp_path, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]
    assert (tmp_path / "there.npz").read_text() == "kept"


def test_nothing_is_left_of_a_file_that_was_not_finished(folders, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(folders, tmp_path / "file.npz", stop)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------- the check


def remedies(found):
    return {(line.form, line.what): line.remedy for line in found.lines}


@pytest.mark.parametrize("form", ["official", "folders"])
def test_a_form_that_is_whole_can_be_used_and_no_other_is_asked_for(form, request):
    found = check(request.getfixturevalue(form))
    assert found.is_usable
    assert all(len(line) == len(HEADER) for line in found.lines)
    *others, images = found.lines
    assert images[1:] == ("images", "2 train, 1 test", "the whole data set has 795 train, 654 test")
    assert {line.remedy for line in others if line.form == images.form} == {""}
    assert {line.remedy for line in others if line.form != images.form} == {"not needed: another form is there"}


def test_a_prepared_file_is_read(written):
    found = check(written["official"])
    assert found.is_usable
    assert [line[:3] for line in found.lines] == [("prepared file", "images", "2 train, 1 test")]


@pytest.mark.parametrize("name", [LABELED, SPLITS, MAPPING])
def test_each_missing_official_file_is_named_with_where_to_get_it(name, official, tmp_path):
    shutil.copytree(official, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    found = check(tmp_path)
    assert not found.is_usable
    missing = [line for line in found.lines if line.form == "official files" and line.found == "missing"]
    assert [line.what for line in missing] == [name]
    assert missing[0].remedy


def test_folders_that_lack_files_are_named(folders, tmp_path):
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    (tmp_path / "train" / "depth" / "1.npy").unlink()
    found = check(tmp_path)
    assert not found.is_usable
    train, val = (line for line in found.lines if line.form == "folders")
    assert train.found == "2 image, 2 label, 1 depth, 2 normal"
    assert train.remedy.startswith("795 files of each")
    assert not val.remedy


def test_damage_is_found(official, tmp_path):
    shutil.copytree(official, tmp_path, dirs_exist_ok=True)
    (tmp_path / LABELED).write_text("<html>")
    found = check(tmp_path)
    assert not found.is_usable
    assert "cannot be read" in found.lines[-1].remedy


def test_an_empty_folder_and_none_at_all(tmp_path):
    found = check(tmp_path)
    assert not found.is_usable
    assert {line.found for line in found.lines} == {"missing"}
    assert all(line.remedy for line in found.lines)
    found = check(tmp_path / "none")
    assert not found.is_usable
    assert "does not exist" in found.lines[0].found


def test_a_prepared_file_in_the_folder_is_pointed_at(written, tmp_path):
    shutil.copy(written["folders"], tmp_path / "nyu.npz")
    found = check(tmp_path)
    assert not found.is_usable
    assert remedies(found)["prepared file", "nyu.npz"] == f"give --root {tmp_path / 'nyu.npz'}"
