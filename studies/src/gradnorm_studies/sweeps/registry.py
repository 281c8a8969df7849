"""The studies that train on data of their own, by name; the sweeps run on any.

A sweep takes the jobs of a study, its base, for `gradnorm`, `equal` and `static`, and asks it for a problem's tasks
(`task_names`) and by what to judge a run: `metric`, a quantity that each run measures by itself, whether the `largest`
is best, and over which share of its end (`late`, where there is one).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradnorm_studies.control.study import Rl
from gradnorm_studies.digits import Digits
from gradnorm_studies.engine.study import Config
from gradnorm_studies.toy import Toy
from gradnorm_studies.vision.settings import VISION_PRESETS
from gradnorm_studies.vision.study import Detect, Vision

Array = NDArray[np.float64]

BASES: dict[str, Any] = {study.name: study for study in (Toy, Digits, Vision, Detect, Rl)}
BASES["vision-gpu"] = partial(Vision, VISION_PRESETS["gpu"])  # as a GPU can do it


def base(name: str, config: Config) -> Any:
    """The study called `name`, as long as a sweep's config says; all else is its own default."""
    size = {"seeds": config.seeds, "steps": config.steps, "record_every": config.record_every}
    study = BASES[name]()
    return replace(study, config=replace(study.config, **size))


def gain(study: Any, ours: Array, theirs: Array) -> Array:
    """How much better `ours` are than `theirs`, both in the study's metric, in percent; below 0 is worse."""
    return (1 if study.largest else -1) * 100 * (ours - theirs) / np.abs(theirs)
