"""Predictions on the first test images, beside the ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gradnorm_studies.vision.data.sample import CLASSES, Sample
from gradnorm_studies.vision.tasks import ImageTask

SHOWN = 4
"""Test images whose predictions are kept for the report, by the first seed."""
DRAWN = ("equal", "gradnorm")
"""Methods whose predictions are shown beside the ground truth."""


def predicted(maps: Mapping[str, Tensor], truths: Sample, tasks: Mapping[str, ImageTask]) -> list[dict[str, Any]]:
    """The predictions for each image: fields of `drawing.AnnotatedImage`, as plain values.

    Args:
        maps: Each task's output, [B, channels, h, w] or [B, channels], on the CPU.
        truths: The same images.
        tasks: By name.
    """
    drawn: list[dict[str, Any]] = [{} for _ in truths.image]
    for i, fields in enumerate(drawn):
        truth = truths.map(lambda values: values[i])  # noqa: B023 - called at once
        for name, task in tasks.items():
            fields.update(task.drawn(maps[name][i], truth))
    return drawn


def compare(path: Path, truths: Sample, made: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Sequence[str]) -> Path:
    """Draw each image's ground truth and predictions; `made` holds them by method."""
    from gradnorm_studies.vision import drawing
    from gradnorm_studies.vision.data.preview import annotated

    rows = []
    for i in range(len(truths.image)):
        truth = annotated(truths.map(lambda values: values[i]))  # noqa: B023 - called at once
        drawn = {
            method: drawing.AnnotatedImage(method, truth.image, **_arrays(fields[i])) for method, fields in made.items()
        }
        rows.append({"truth": truth, **drawn})
    return drawing.comparison(path, rows, tasks, CLASSES)


def _arrays(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Stored fields of an annotated image as arrays."""
    return {name: value if isinstance(value, str) else np.array(value) for name, value in fields.items()}
