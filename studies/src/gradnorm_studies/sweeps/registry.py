"""Registry of the base studies, by name: those that sweeps can run on.

A sweep takes the base study's jobs for `gradnorm`, `equal` and `static`, a problem's tasks (`task_names`), and the
criterion for a run: `metric`, a quantity of one run alone, whether the `largest` is best, and the share of the run's
end to average over (`late`, where there is one).
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
    """The study `name` with the sweep's steps and seeds, and its own defaults for all else."""
    size = {"seeds": config.seeds, "steps": config.steps, "record_every": config.record_every}
    study = BASES[name]()
    return replace(study, config=replace(study.config, **size))


def gain(study: Any, ours: Array, theirs: Array) -> Array:
    """Gain of `ours` over `theirs` in the study's metric, in percent; negative is worse."""
    return (1 if study.largest else -1) * 100 * (ours - theirs) / np.abs(theirs)
