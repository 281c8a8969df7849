"""The grid's weightings, and the two questions that it answers."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.engine.executor import reproduce
from gradnorm_studies.sweeps.random_weights import Cloud, Grid, GridConfig, _claims
from gradnorm_studies.sweeps.registry import BASES

TOY = Grid(GridConfig("toy", weightings=3, seeds=1, steps=4, record_every=4))


def quiet():
    return Console(file=io.StringIO())


@pytest.mark.parametrize("name", BASES)
def test_every_base_trains_every_weighting_once_a_seed_beside_the_methods(name):
    grid = Grid(replace(Grid.presets[name], seeds=2))
    for problem, seed in {(job.problem, job.seed) for job in grid.jobs()}:
        jobs = [job for job in grid.jobs() if (job.problem, job.seed) == (problem, seed)]
        assert [job.method for job in jobs if not job.label] == ["gradnorm", "equal", "static"]
        drawn = [list(job.weights) for job in jobs if job.label]
        assert drawn == grid.weights(problem).tolist()


def test_weightings_are_positive_different_and_sum_to_the_number_of_tasks():
    weights = Grid().weights("T=10")
    assert weights.shape == (100, 10)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 10)
    assert len(np.unique(weights, axis=0)) == 100


def clouds(grid, out):
    """What each problem's weightings came to, read from the folder."""
    runs = {job.key: json.loads((out / "runs" / f"{job.file_name}.json").read_text())["rows"] for job in grid.jobs()}
    return {problem: grid._cloud(Metrics(runs), problem) for problem in ("T=2", "T=10")}


def test_every_weighting_has_a_gain_and_a_distance_of_its_own(tmp_path):
    reproduce(TOY, tmp_path, workers=0, console=quiet())
    computed = json.loads((tmp_path / "manifest.json").read_text())["runs_computed_by_the_last_start"]
    assert computed == len(TOY.jobs())
    for cloud in clouds(TOY, tmp_path).values():
        assert cloud.gains.shape == cloud.distances.shape == (3, 1)
        assert len(np.unique(cloud.gains)) == len(np.unique(cloud.distances)) == 3


def test_a_second_start_computes_only_what_is_missing(tmp_path):
    reproduce(TOY, tmp_path, workers=0, console=quiet())
    table = (tmp_path / "table.md").read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    lost = tmp_path / "runs" / "T-2_weights-2_0.json"
    before = lost.read_bytes()
    lost.unlink()
    reproduce(TOY, tmp_path, workers=0, console=quiet())
    assert json.loads((tmp_path / "manifest.json").read_text())["runs_computed_by_the_last_start"] == 1
    assert lost.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in kept if path != lost} == {
        path: time for path, time in kept.items() if path != lost
    }
    assert (tmp_path / "table.md").read_bytes() == table


DISTANCES = np.array([[0.5, 0.5], [1.0, 1.0], [2.0, 2.0]])
BEHIND, LEVEL = [-1.0, -2.0, -4.0], [-1.0, -4.0, -1.0]


@pytest.mark.parametrize(
    ("gains", "none_beats", "falls"),
    [
        ([BEHIND, BEHIND], [True, True], [True, True]),
        ([BEHIND, [0.1, -2.0, -4.0]], [True, False], [True, True]),
        ([LEVEL, BEHIND], [True, True], [False, True]),
    ],
)
def test_claims_are_counted_seed_by_seed(gains, none_beats, falls):
    cloud = Cloud(DISTANCES, np.array(gains).T, np.zeros(2), {})
    answers = [claim.look(None, "T=2").answers.tolist() for claim in _claims({"T=2": cloud})]
    assert answers == [none_beats, falls]


def test_distances_are_from_gradnorms_time_averaged_weights(tmp_path):
    grid = Grid(replace(TOY.config, weightings=2))
    report = reproduce(grid, tmp_path, workers=0, console=quiet())
    averaged = json.loads((tmp_path / "runs" / "T-2_gradnorm_0.json").read_text())["averaged_weights"]
    wanted = np.linalg.norm(grid.weights("T=2") - np.array(averaged), axis=1)
    np.testing.assert_allclose(clouds(grid, tmp_path)["T=2"].distances[:, 0], wanted, rtol=1e-6)
    assert report.figures[0].path.stat().st_size > 1000
