"""Registry of all studies, by the name that `gradnorm reproduce` takes; a new one is added here."""

from __future__ import annotations

from gradnorm_studies.control.study import Rl
from gradnorm_studies.digits import Digits
from gradnorm_studies.sweeps.alpha import Alpha
from gradnorm_studies.sweeps.random_weights import Grid
from gradnorm_studies.toy import Toy
from gradnorm_studies.vision.study import Detect, Vision

STUDIES = {study.name: study for study in (Toy, Digits, Vision, Detect, Rl, Alpha, Grid)}
