"""The unit is that of one loss alone, and what is reported does not know it."""

import pytest
import torch

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
