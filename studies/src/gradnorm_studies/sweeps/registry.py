"""The studies that sweeps can run on, and what all sweeps take from theirs: problems, tasks, runs, criterion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.control.study import Rl
from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.engine.experiment import Experiment, Job, Stop
from gradnorm_studies.engine.settings import Config, check, setting
from gradnorm_studies.engine.study import Study
from gradnorm_studies.faces.study import FacesStudy
from gradnorm_studies.helmholtz import PhysicsInformed
from gradnorm_studies.molecules import Molecules
from gradnorm_studies.toy import Toy
from gradnorm_studies.vision.settings import VISION_PRESETS
from gradnorm_studies.vision.study import Detect, Vision

Array = NDArray[np.float64]

BASES: dict[str, Any] = {
    **{study.name: study for study in (Toy, Molecules, PhysicsInformed, FacesStudy, Vision, Detect, Rl)},
    "nyuv2": partial(Vision, VISION_PRESETS["nyuv2"]),
    "vision-gpu": partial(Vision, VISION_PRESETS["gpu"]),  # as a GPU can do it
}


@dataclass(frozen=True)
class SweepConfig(Config):
    """A sweep's settings; all others are the base study's."""

    on: str = setting(
        "toy",
        "Study whose problem, network and learning rates are taken.",
        "The problem that the paper begins with.",
        choices=tuple(BASES),
    )
    root: str = setting("", "Path of that study's data.", "Most need none.", is_place=True)
    base_settings: str = setting("", "Other settings of that study, as alpha=0.5,batch=32.", "Its own defaults.")


S = TypeVar("S", bound=SweepConfig)


class Sweep(Study[S]):
    """A study whose runs are those of another one, with something varied.

    Attributes:
        base: The other study, with the sweep's seeds and steps, and its own defaults for all else.
    """

    chooser = "on"
    methods: str
    """The methods of the base study that the sweep starts from."""

    def __init__(self, config: S | None = None) -> None:
        super().__init__(config)
        own = self.config
        study = BASES[own.on]()
        size: Mapping[str, Any] = {"seeds": own.seeds, "steps": own.steps, "record_every": own.record_every}
        given = _parsed(own.base_settings, study)
        if own.root and not hasattr(study.config, "root"):
            raise UsageError(f"--root is {own.root}, but {own.on} reads no data: leave it out.")
        if own.root:
            given["root"] = own.root
        config = replace(study.config, **{**given, **size, "methods": self.methods})
        check(config)
        self.base: Study[Any] = type(study)(config)
        self.problems, self.metric = self.base.problems, self.base.metric
        self.late, self.by_validation = self.base.late, self.base.by_validation
        self.gpus, self.extra = self.base.gpus, self.base.extra

    def tasks(self, problem: str) -> tuple[str, ...]:
        return self.base.tasks(problem)

    def experiment(self, job: Job) -> Experiment:
        return self.base.experiment(job)

    def train(self, job: Job, folder: Path, stop: Stop) -> bool:
        return self.base.train(job, folder, stop)

    def recorded(self) -> dict[str, Any]:
        """With the settings of the base study."""
        return {**super().recorded(), "base": self.base.recorded()}

    def losing(self, metrics: Metrics) -> list[str]:
        """Nothing: a sweep has questions of its own."""
        return []

    def lr(self, problem: str, label: str) -> float:
        return self.base.lr(problem, label.split()[0])


def _parsed(text: str, study: Study[Any]) -> dict[str, Any]:
    """Settings of a study from a text like `alpha=0.5,batch=32`, but those that the sweep sets itself.

    Raises:
        UsageError: An unknown setting, or a value of another type.
    """
    own = {"methods", study.chooser, *(field.name for field in fields(SweepConfig))}
    known = {field.name: type(getattr(study.config, field.name)) for field in fields(study.config)}
    known = {name: kind for name, kind in known.items() if name not in own}
    found = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        name = name.strip().replace("-", "_")
        try:
            found[name] = known[name](value.strip())
        except (KeyError, ValueError):
            raise UsageError(
                f"--base-settings has {item!r}: give name=value, separated by commas, of {', '.join(known)}."
            ) from None
    return found
