import pickle
import shutil

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.vision.data.geometry import normals_from_depth
from gradnorm_studies.vision.data.nyuv2 import NYUv2
from gradnorm_studies.vision.data.nyuv2 import folders as folder_form
from gradnorm_studies.vision.data.nyuv2.dataset import BLOCK, hold_out
from gradnorm_studies.vision.data.nyuv2.official import LABELED, MAPPING, SPLITS, _class_table
from gradnorm_studies.vision.data.nyuv2.resizing import resized
from gradnorm_studies.vision.data.nyuv2.scenes import KINECT
from gradnorm_studies.vision.data.sample import CLASSES, Sample, collate

from .scenes import angles, room

FORTY_TO_THIRTEEN = {1: "wall", 2: "floor", 4: "bed", 5: "chair", 6: "sofa", 9: "window", 11: "picture", 40: "objects"}
SIZE, OUT = 64, 16


def valid(sample):
    assert sample.image.shape == (3, SIZE, SIZE)
    assert sample.segmentation.shape == (OUT, OUT)
    assert sample.depth.shape == (1, OUT, OUT)
    assert sample.normals.shape == (3, OUT, OUT)
    assert [x.dtype for x in (sample.image, sample.segmentation, sample.depth, sample.normals)] == [
        torch.float32,
        torch.int64,
        torch.float32,
        torch.float32,
    ]
    assert 0 <= sample.image.min() <= sample.image.max() <= 1
    lengths = sample.normals.norm(dim=0)
    assert (((lengths - 1).abs() < 1e-5) | (lengths == 0)).all()


def truth(out=OUT, tilt=0.3):
    """The room as a camera with so few pixels sees it."""
    return room(KINECT.scaled(out / 560, out / 426), out, out, tilt)


# ------------------------------------------------------------------------------------------------ the official file


def test_official_splits(official):
    train, test = NYUv2(official, "train", SIZE, OUT), NYUv2(official, "test", SIZE, OUT)
    assert (len(train), len(test)) == (2, 1)
    numbers = [round(float(sample.image[2].mean()) * 25.5) for sample in (*train, *test)]
    assert numbers == [0, 2, 1]


def test_official_image_is_upright_and_cropped(official):
    sample = NYUv2(official, "test", SIZE, OUT)[0]
    valid(sample)
    centers = (torch.arange(SIZE) + 0.5) / SIZE
    inner = slice(2, -2)  # the average over an area has less of it at the border
    torch.testing.assert_close(sample.image[0].mean(0)[inner], ((41 + 560 * centers) / 639)[inner], atol=4e-3, rtol=0)
    torch.testing.assert_close(sample.image[1].mean(1)[inner], ((45 + 426 * centers) / 479)[inner], atol=4e-3, rtol=0)


def test_official_classes(official):
    classes = NYUv2(official, "test", SIZE, OUT)[0].segmentation
    assert (classes[:13, :8] == CLASSES.index("bed")).all()
    assert (classes[:13, 8:] == CLASSES.index("window")).all()
    assert (classes[14:] == -1).all()


@pytest.mark.parametrize(("forty", "name"), FORTY_TO_THIRTEEN.items())
def test_forty_classes_become_thirteen(tmp_path, forty, name):
    savemat(tmp_path / MAPPING, {"mapClass": [[forty] * 894]})
    assert _class_table(tmp_path / MAPPING).tolist() == [-1] + [CLASSES.index(name)] * 894


def test_official_depth_and_normals(official):
    sample = NYUv2(official, "test", SIZE, OUT)[0]
    depth, normals = truth()
    assert ((sample.depth - depth).abs() / depth).median() < 0.01
    unseen = int((150 - 45) / 426 * OUT)
    assert not sample.normals[:, :unseen].any()
    seen = slice(unseen + 1, None)
    assert sample.normals[:, seen].any(0).all()
    assert angles(sample.normals, normals)[seen].median() < 1


def test_datasets_survive_pickling(official):
    dataset = NYUv2(official, "test", SIZE, OUT)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0].depth, dataset[0].depth)


# --------------------------------------------------------------------------------------------- preprocessed folders


def test_folders(folders):
    train, test = NYUv2(folders, "train", SIZE, OUT), NYUv2(folders, "test", SIZE, OUT)
    assert (len(train), len(test)) == (2, 1)
    for sample in (*train, *test):
        valid(sample)
    assert [float(s.image[0, 5, 5]) for s in train] == [0.25, 0.5]
    classes = train[0].segmentation
    assert (classes[:, :8] == 3).all()
    assert (classes[:, 8:] == -1).all()
    depth, _ = truth(tilt=0.2)
    found = train[0].depth
    assert not found[:, 0].any()
    assert ((found - depth).abs() / depth)[:, 3:].median() < 0.02
    assert collate(list(train)).image.shape == (2, 3, SIZE, SIZE)


def test_the_axes_of_stored_normals_are_found(folders):
    for i, tilt in enumerate((0.2, 0.4)):
        _, normals = truth(tilt=tilt)
        assert angles(NYUv2(folders, "train", SIZE, OUT)[i].normals, normals).median() < 1e-2


# ------------------------------------------------------------------------------------------------------- validation


def test_validation_images_are_training_images_that_are_not_trained_on(folders):
    whole = NYUv2(folders, "train", SIZE, OUT)
    train, validation = (NYUv2(folders, split, SIZE, OUT, held_out=1) for split in ("train", "validation"))
    levels = [[float(sample.image[0, 5, 5]) for sample in part] for part in (whole, train, validation)]
    assert (len(train), len(validation)) == (1, 1)
    assert sorted(levels[1] + levels[2]) == levels[0]
    assert len(NYUv2(folders, "test", SIZE, OUT, held_out=1)) == 1


def test_neighbors_are_held_out_together_and_many_rooms_are():
    numbers = [n for start in range(0, 1400, 20) for n in range(start, start + 11)]
    held = hold_out(numbers, 80)
    assert len(held) == len({*held}) == 80
    assert held == sorted(held) == hold_out(numbers, 80)
    drawn = {numbers[i] for i in held}
    whole = [all(n + k in drawn for k in range(BLOCK)) for n in range(0, 1400, 20) if n in drawn]
    assert sum(whole) >= len(whole) - 1  # the last one is cut
    assert len({n // 20 for n in drawn}) >= 80 // BLOCK


def test_files_without_gaps_are_held_out_in_blocks():
    held = hold_out(range(795), 80)
    blocks = {i // BLOCK for i in held}
    assert len(blocks) == 80 // BLOCK
    assert max(blocks) - min(blocks) > 50


def test_more_for_validation_than_there_is_to_train_on_is_refused(folders):
    with pytest.raises(UsageError, match=r"--validation-images is 2, but there are 2 training images"):
        NYUv2(folders, "train", SIZE, OUT, held_out=2)


# --------------------------------------------------------------------------------------------------------- resizing


def test_a_view_need_not_be_squeezed_into_a_square(folders):
    sample = NYUv2(folders, "train", size=(48, 64), out=(12, 16))[0]
    assert sample.image.shape == (3, 48, 64)
    assert sample.depth.shape == (1, 12, 16)
    assert (sample.segmentation[:, :8] == 3).all()


def test_only_what_is_known_is_averaged():
    depth = torch.tensor([[[2.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0] * 4, [3.0] * 4]])
    normals = torch.zeros(3, 4, 4)
    normals[0, 0, 0], normals[2, 0, 1] = 1.0, -1.0
    small = resized(Sample(torch.rand(3, 4, 4), torch.zeros(4, 4).long(), depth, normals), 4, 2)
    assert small.depth.tolist() == [[[3.0, 0.0], [2.0, 2.0]]]
    torch.testing.assert_close(small.normals[:, 0, 0], torch.tensor([0.5**0.5, 0.0, -(0.5**0.5)]))
    assert not small.normals[:, 1:].any()


def test_classes_are_not_mixed():
    classes = torch.tensor([-1, 12]).repeat(6, 3)
    sample = Sample(torch.rand(3, 6, 6), classes, torch.ones(1, 6, 6), torch.zeros(3, 6, 6))
    assert set(resized(sample, 6, 5).segmentation.unique().tolist()) == {-1, 12}


# ----------------------------------------------------------------------------------------------------------- errors


def truncate(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def rewrite(path, name, array):
    with h5py.File(path, "a") as file:
        del file[name]
        if array is not None:
            file[name] = array


OFFICIAL_FAULTS = {
    "no splits": (lambda root: (root / SPLITS).unlink(), "but not splits.mat"),
    "no mapping": (lambda root: (root / MAPPING).unlink(), "but not classMapping40.mat"),
    "a web page": (lambda root: (root / LABELED).write_text("<html>"), rf"{LABELED} cannot be read \(6 bytes\)"),
    "truncated": (lambda root: truncate(root / LABELED), rf"{LABELED} cannot be read .*truncated"),
    "no depth": (lambda root: rewrite(root / LABELED, "depths", None), "'depths' is missing"),
    "fewer labels": (
        lambda root: rewrite(root / LABELED, "labels", np.zeros((2, 640, 480))),
        r"'labels' has shape \(2,",
    ),
    "upright": (
        lambda root: rewrite(root / LABELED, "images", np.zeros((3, 3, 480, 640))),
        r"'images' has shape \(3, 3, 480, 640\)",
    ),
    "truncated splits": (lambda root: truncate(root / SPLITS), "splits.mat cannot be read"),
    "other splits": (lambda root: savemat(root / SPLITS, {"x": [1]}), "splits.mat cannot be read .*testNdxs"),
    "beyond": (lambda root: savemat(root / SPLITS, {"testNdxs": [[4]]}), "names image 4, but .* holds 3"),
    "other mapping": (lambda root: savemat(root / MAPPING, {"mapClass": [[1, 2]]}), "894 classes .* has 2 entries"),
}


@pytest.mark.parametrize("fault", OFFICIAL_FAULTS)
def test_faults_of_the_official_files_are_named(official, tmp_path, fault):
    shutil.copytree(official, tmp_path, dirs_exist_ok=True)
    make, message = OFFICIAL_FAULTS[fault]
    make(tmp_path)
    with pytest.raises(UsageError, match=message):
        NYUv2(tmp_path, "test")


def test_damage_within_an_image_is_named_when_it_is_read(official, tmp_path):
    shutil.copytree(official, tmp_path, dirs_exist_ok=True)
    with h5py.File(tmp_path / LABELED) as file:
        chunk = file["depths"].id.get_chunk_info_by_coord((1, 0, 0))
    with (tmp_path / LABELED).open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    with pytest.raises(UsageError, match=f"{LABELED} cannot be read"):
        NYUv2(tmp_path, "test")[0]


def test_labels_beyond_the_classes_are_named(official, tmp_path):
    shutil.copytree(official, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path / LABELED, "labels", np.full((3, 640, 480), 1000, np.uint16))
    with pytest.raises(UsageError, match="image 2 has label 1000"):
        NYUv2(tmp_path, "test")[0]


FOLDER_FAULTS = {
    "no normals": (lambda root: shutil.rmtree(root / "train/normal"), r"in .*normal, 2 missing: 0.npy, 1.npy"),
    "one missing": (lambda root: (root / "train/depth/1.npy").unlink(), r"in .*depth, 1 missing: 1.npy"),
    "empty": (lambda root: shutil.rmtree(root / "train") or (root / "train").mkdir(), r"all missing: all files"),
    "truncated": (lambda root: truncate(root / "train/label/1.npy", 0.9), r"label.1.npy cannot be read"),
    "no array": (lambda root: (root / "train/image/0.npy").write_text("text"), r"image.0.npy cannot be read \(4 bytes"),
    "wrong shape": (
        lambda root: np.save(root / "train/depth/0.npy", np.ones((72, 96))),
        r"depth.0.npy has shape \(72, 96\), where \(72, 96, 1\)",
    ),
    "forty classes": (
        lambda root: np.save(root / "train/label/0.npy", np.full((72, 96), 39.0)),
        r"label.0.npy holds class 39",
    ),
    "other normals": (
        lambda root: [
            np.save(path, np.random.default_rng(0).normal(size=(72, 96, 3))) for path in root.glob("train/normal/*.npy")
        ],
        "in no order and signs",
    ),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_faults_of_the_folders_are_named_before_training(folders, tmp_path, fault, monkeypatch):
    monkeypatch.setattr(folder_form, "AXES_IMAGES", 1)  # so that not every file is read at once anyway
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    make, message = FOLDER_FAULTS[fault]
    make(tmp_path)
    with pytest.raises(UsageError, match=message):
        NYUv2(tmp_path, "train")


@pytest.mark.parametrize("there", [None, (), ("nyu.zip",)])
def test_what_is_missing_is_said_with_where_to_get_it(tmp_path, there):
    root = tmp_path / "nyu"
    if there is not None:
        root.mkdir()
    for name in there or ():
        (root / name).touch()
    with pytest.raises(UsageError) as error:
        NYUv2(root, "train")
    message = str(error.value)
    found = {None: "does not exist", (): "holds nothing", ("nyu.zip",): "holds nyu.zip"}[there]
    for part in (str(root), found, LABELED, SPLITS, MAPPING, "NYU Depth Dataset V2", "image, label, depth, normal"):
        assert part in message


def test_other_splits_are_refused(folders):
    with pytest.raises(ValueError, match="'val'"):
        NYUv2(folders, "val")


def test_normals_bear_the_steps_and_noise_of_a_kinect():
    depth, normals = room(KINECT, 426, 560)
    step = 1 / 8 / (0.075 * 580)  # an eighth of a pixel of disparity; baseline in meters, focal length in pixels
    noise = torch.randn(depth.shape, generator=torch.Generator().manual_seed(0))
    coarse = 1 / (step * (1 / depth / step + noise / 2).round())
    blank = torch.zeros(426, 560).long()
    small = [
        resized(Sample(torch.zeros(3, 426, 560), blank, depth, n), OUT, 80).normals
        for n in (normals_from_depth(coarse, KINECT), normals)
    ]
    wrong = angles(*small)
    assert wrong.median() < 1.5
    assert wrong.mean() < 3


def test_the_camera_of_the_official_images_sees_as_wide_as_the_kinect():
    left, right = KINECT.rays(426, 560)[0, 0, [0, -1]]
    assert 50 < torch.rad2deg(right.atan() - left.atan()) < 60
