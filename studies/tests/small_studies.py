"""A small instance of every study, for the contract battery; a new study adds a line."""

from dataclasses import replace

from gradnorm_studies.helmholtz import PhysicsInformed
from gradnorm_studies.molecules import Molecules
from gradnorm_studies.sweeps.alpha import Alpha, AlphaConfig
from gradnorm_studies.sweeps.learning_rate import Search
from gradnorm_studies.sweeps.random_weights import Grid, GridConfig
from gradnorm_studies.toy import Toy
from gradnorm_studies.units import Units

SIZE = {"seeds": 1, "steps": 4, "record_every": 2}


def small(study, **changes):
    """The study with its default config, made small."""
    return study(replace(study.default, **{**SIZE, **changes}))


STUDIES = [
    small(Toy, batch=8, test_size=16),
    small(Units, batch=8, decades=1),
    small(Molecules, batch=8),
    small(PhysicsInformed, inside=8, edge=4),
]
SWEEPS = [
    Alpha(AlphaConfig(**SIZE, on="toy")),
    Grid(GridConfig(**SIZE, on="toy", weightings=3)),
    Search(small(Units, batch=8, decades=0)),
]
