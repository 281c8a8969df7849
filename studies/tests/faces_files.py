"""Small files in the forms in which MTFL comes, with noise in place of faces."""

import numpy as np
from PIL import Image

FACE = np.array([[100.0, 100.0], [140.0, 98.0], [122.0, 122.0], [104.0, 146.0], [136.0, 144.0]])
"""Landmarks in an image of 200 × 240 pixels (width, height)."""


def line(name, points=FACE, attributes=(1, 1, 2, 3)):
    numbers = [*points[:, 0], *points[:, 1]]
    return f" {name} {' '.join(f'{v:.6f}' for v in numbers)} {' '.join(map(str, attributes))}"


def write_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (240, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_official(root, train=4, test=2):
    """Noise and made-up landmarks in MTFL's own form: Windows' separators, a leading space, an empty last line."""
    random = np.random.default_rng(1)
    for name, folder, n in (("training.txt", "lfw_5590", train), ("testing.txt", "AFLW", test)):
        lines = []
        for i in range(n):
            write_image(root / folder / f"face {i}.jpg", i)
            codes = (1 + i % 2, 1, 2, 1 + i % 5)
            lines.append(line(f"{folder}\\face {i}.jpg", FACE + random.normal(scale=3, size=(5, 2)), codes))
        (root / name).write_text("\r\n".join([*lines, " "]))
    return root


def write_prepared(path, n=30, seed=0, **changed):
    random = np.random.default_rng(seed)
    arrays = {}
    for split in ("train", "test"):
        arrays |= {
            f"{split}_image": random.integers(0, 256, (n, 40, 40), dtype=np.uint8),
            f"{split}_points": ((FACE - 60) / 120 + random.normal(scale=0.02, size=(n, 5, 2))).astype(np.float32),
            **{f"{split}_{name}": random.integers(0, 2, n).astype(np.uint8) for name in ("gender", "smile", "glasses")},
            f"{split}_pose": random.integers(0, 5, n).astype(np.uint8),
        }
    arrays = {key: value for key, value in {**arrays, **changed}.items() if value is not None}
    np.savez(path, **arrays)
    return path
