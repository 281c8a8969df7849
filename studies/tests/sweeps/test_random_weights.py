"""The grid's weightings, and the two questions that it answers."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.engine.executor import reproduce
from gradnorm_studies.engine.pool import InProcess
from gradnorm_studies.sweeps.random_weights import Cloud, Grid, GridConfig
from gradnorm_studies.sweeps.registry import BASES

TOY = Grid(GridConfig(seeds=1, steps=4, record_every=4, on="toy", weightings=3))


@pytest.mark.parametrize("name", [name for name in BASES if name != "faces"])  # which looks for its data first
def test_every_base_trains_every_weighting_once_a_seed_beside_the_methods(name):
    place = {"root": "."} if name == "nyuv2" else {}
    grid = Grid(replace(Grid.presets[name], seeds=2, **place))
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


def test_every_weighting_has_a_gain_and_a_distance_from_gradnorms_averages(tmp_path):
    reproduce(TOY, tmp_path, InProcess, Console(file=io.StringIO()))
    results = {job.key: json.loads((tmp_path / "runs" / f"{job.file_name}.json").read_text()) for job in TOY.jobs()}
    metrics = Metrics({key: result["rows"] for key, result in results.items()})
    for problem in TOY.problems:
        cloud = TOY.cloud(metrics, problem)
        averaged = results[problem, "gradnorm", 0]["averaged_weights"]
        wanted = np.linalg.norm(TOY.weights(problem) - np.array(averaged), axis=1)
        np.testing.assert_allclose(cloud.distances[:, 0], wanted, rtol=1e-6)
        assert cloud.gains.shape == (3, 1)
        assert len(np.unique(cloud.gains)) == 3


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
def test_claims_are_answered_seed_by_seed(gains, none_beats, falls, monkeypatch):
    cloud = Cloud(DISTANCES, np.array(gains).T, np.zeros(2), {})
    monkeypatch.setattr(Grid, "cloud", lambda self, metrics, problem: cloud)
    answers = [(claim.look(Metrics({}), "T=2").margins > 0).tolist() for claim in Grid().asked()]
    assert answers == [none_beats, falls]
