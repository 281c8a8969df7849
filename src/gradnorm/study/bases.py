"""The studies that train on data of their own, by name; the sweeps of `alpha.py` run on any of them.

A sweep asks of a study, its base, which method ends where (`metric`, `largest`, and `late` where it has one), and takes
its jobs for `gradnorm` and `equal`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradnorm.study.digits import Digits
from gradnorm.study.metrics import Metrics
from gradnorm.study.rl import Rl
from gradnorm.study.run import Config
from gradnorm.study.toy import Toy

BASES: dict[str, Any] = {study.name: study for study in (Toy, Digits, Rl)}


def base(name: str, config: Config) -> Any:
    """The study called `name`, as long as a sweep's config says; all else is its own default."""
    size = {"seeds": config.seeds, "steps": config.steps, "record_every": config.record_every}
    return BASES[name](replace(BASES[name]().config, **size))


def gain(study: Any, metrics: Metrics, problem: str, method: str, over: str) -> NDArray[np.float64]:
    """How much better `method` ends than `over`, in per cent of the study's metric, [seeds]; below 0 is worse."""
    ends = metrics.late(getattr(study, "late", 0.0))
    ours, theirs = (ends.final(problem, name, study.metric) for name in (method, over))
    return (1 if study.largest else -1) * 100 * (ours - theirs) / np.abs(theirs)
