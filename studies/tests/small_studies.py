"""A small instance of every study, for the contract battery; a new study adds a line."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from faces_files import write_prepared
from gradnorm_studies.control.study import Rl
from gradnorm_studies.faces.study import FacesStudy
from gradnorm_studies.helmholtz import PhysicsInformed
from gradnorm_studies.molecules import Molecules
from gradnorm_studies.sweeps.alpha import Alpha, AlphaConfig
from gradnorm_studies.sweeps.learning_rate import Search
from gradnorm_studies.sweeps.random_weights import Grid, GridConfig
from gradnorm_studies.toy import Toy
from gradnorm_studies.units import Units
from gradnorm_studies.vision.study import Detect, Vision

IMAGES = {
    "size": 32,
    "width": 0.0625,
    "batch": 2,
    "train_images": 4,
    "validation_images": 2,
    "test_images": 2,
}
PPO = {"rollout_envs": 2, "rollout_steps": 4, "updates": 2, "minibatch": 4}
_FOLDER = TemporaryDirectory()
FACES = str(write_prepared(Path(_FOLDER.name) / "faces.npz"))
SIZE = {"seeds": 1, "steps": 4, "record_every": 2}


def small(study, **changes):
    """The study with its default config, made small."""
    return study(replace(study.default, **{**SIZE, **changes}))


STUDIES = [
    small(Toy, batch=8, test_size=16),
    small(Units, batch=8, decades=1),
    small(Molecules, batch=8),
    small(PhysicsInformed, inside=8, edge=4),
    small(FacesStudy, root=FACES, batch=4, validation=6),
    small(Vision, **IMAGES),
    small(Detect, **IMAGES),
    small(Rl, batch=8, learning_starts=4, buffer_size=64, eval_episodes=1, **PPO),
]
SWEEPS = [
    Alpha(AlphaConfig(**SIZE, on="toy")),
    Grid(GridConfig(**SIZE, on="toy", weightings=3)),
    Search(small(Units, batch=8, decades=0)),
]
