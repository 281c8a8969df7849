"""Registry of all studies, by the name that `gradnorm reproduce` takes; a new one is added here."""

from __future__ import annotations

from typing import Any

from gradnorm_studies.control.study import Rl
from gradnorm_studies.engine.study import Study
from gradnorm_studies.faces.study import FacesStudy
from gradnorm_studies.helmholtz import PhysicsInformed
from gradnorm_studies.molecules import Molecules
from gradnorm_studies.sweeps.alpha import Alpha
from gradnorm_studies.sweeps.random_weights import Grid
from gradnorm_studies.toy import Toy
from gradnorm_studies.units import Units
from gradnorm_studies.vision.study import Detect, Vision

ALL: tuple[type[Study[Any]], ...] = (
    *(Units, Toy, FacesStudy, Vision, Molecules, PhysicsInformed, Detect, Rl),
    *(Alpha, Grid),
)
STUDIES = {study.name: study for study in ALL}
