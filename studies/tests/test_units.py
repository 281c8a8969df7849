"""The unit is that of one loss alone, and what is reported does not know it."""

from dataclasses import replace

import pytest
import torch

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.units import DATA, Scaled, Units, UnitsConfig, problem_at

CONFIG = UnitsConfig(batch=32)


def built(data, k, method="equal"):
    torch.manual_seed(0)
    return Scaled(CONFIG, Job(problem_at(data, k), method, 0, 1e-3))


@pytest.mark.parametrize("data", DATA)
def test_only_the_last_loss_is_multiplied(data):
    plain, scaled = built(data, 0), built(data, -3)
    torch.testing.assert_close(scaled.losses(0)[:-1], plain.losses(0)[:-1])
    torch.testing.assert_close(scaled.losses(0)[-1], plain.losses(0)[-1] / 1000)
    assert scaled.evaluate("test") == plain.evaluate("test")


@pytest.mark.parametrize("data", DATA)
def test_no_row_is_in_two_splits(data):
    rows = DATA[data](0).rows
    together = torch.cat(rows)
    assert len(together.unique()) == len(together) == len(DATA[data](0).x)


def test_rates_are_those_at_k_0_whatever_k(monkeypatch):
    asked = []
    monkeypatch.setattr("gradnorm_studies.engine.rates.chosen", lambda *found: asked.append(found) or 0.5)
    assert Units().lr("digits ×1e-6", "equal") == 0.5
    assert asked == [("units", 1000, "digits ×1e+0", "equal")]


def test_thirteen_units_a_data_set():
    assert len(Units().problems) == 13 * len(DATA)


def test_a_batch_larger_than_the_data_trains_by_dwa_too():
    study = Units(replace(Units.default, batch=2048))
    run = study.experiment(next(job for job in study.jobs() if job.method == "dwa" and "digits" in job.problem))
    run.weighting(run.losses(0))
    run.weighting.step()
    assert run.weighting.weights.tolist() == [1.0, 1.0]


def test_a_method_that_diverged_is_not_the_best_of_all():
    study = Units(replace(Units.default, decades=0, seeds=3, methods="gradnorm,equal"))
    scores = {"gradnorm": float("nan"), "equal": 90.0}
    runs = {(p, m, seed): [(1, "score %", scores[m])] for p in study.problems for m in scores for seed in range(3)}
    found = {finding.text: finding.verdict for finding in study.findings(Metrics(runs))}
    assert found["Equal weighting needs no tuning: at every k within 5 points of the best"] == "holds"
