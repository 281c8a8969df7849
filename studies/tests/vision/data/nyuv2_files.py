"""Tiny data sets in the two forms of NYUv2."""

import h5py
import numpy as np
import torch
from scipy.io import savemat

from gradnorm_studies.vision.data.nyuv2.official import LABELED, MAPPING, SPLITS
from gradnorm_studies.vision.data.nyuv2.scenes import KINECT

from .scenes import room


def write_official(root):
    """Three images of the official size: gradients, a room, two classes side by side; the middle one is for testing."""
    rows, columns = np.mgrid[:480, :640]
    depth, _ = room(KINECT.cropped(-41, -45), 480, 640)
    with h5py.File(root / LABELED, "w") as file:
        image = np.stack([columns / 639 * 255, rows / 479 * 255, 0 * rows]).astype(np.uint8)
        images = np.stack([image + np.array([0, 0, 10 * i], np.uint8)[:, None, None] for i in range(3)])
        labels = np.where(columns < 320, 1, 894) * (rows < 400)
        raw = depth[0].numpy() * (rows > 150)

        def write(name, one, dtype):
            stored = np.stack([one] * 3) if len(one) != 3 else one
            file.create_dataset(name, data=stored.swapaxes(-1, -2).astype(dtype), compression="gzip")

        write("images", images, np.uint8)
        write("depths", depth[0].numpy(), np.float32)
        write("rawDepths", raw, np.float32)
        write("labels", labels, np.uint16)
    savemat(root / SPLITS, {"trainNdxs": [[1], [3]], "testNdxs": [[2]]})
    savemat(root / MAPPING, {"mapClass": [[4, *[40] * 892, 9]]})


def write_folders(root):
    """Two training and one test image of a quarter of the published size; x of the normals is left, y and z swapped."""
    height, width = 72, 96
    for split, count in (("train", 2), ("val", 1)):
        for i in range(count):
            depth, normals = room(KINECT.scaled(width / 560, height / 426), height, width, tilt=0.2 + 0.2 * i)
            label = np.full((height, width), 3.0)
            label[:, width // 2 :] = -1
            depth[..., :8, :] = 0
            normals = normals[[0, 2, 1]] * torch.tensor([-1, 1, 1])[:, None, None]
            arrays = {
                "image": np.full((height, width, 3), 0.25 + i / 4),
                "label": label,
                "depth": depth.movedim(0, -1).numpy(),
                "normal": normals.movedim(0, -1).numpy(),
            }
            for name, array in arrays.items():
                (root / split / name).mkdir(parents=True, exist_ok=True)
                np.save(root / split / name / f"{i}.npy", array)
