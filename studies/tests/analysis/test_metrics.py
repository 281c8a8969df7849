"""Ends without jitter, the best step by validation, and gains over a reference."""

import numpy as np
import pytest

from gradnorm_studies.analysis.metrics import Metrics, MissingRunError, Quantity


def test_late_ends_are_the_mean_over_the_last_share():
    runs = {("p", "m", 0): [(step, "x", float(step)) for step in range(8)] + [(7, "once", 5.0)]}
    late = Metrics(runs).late(0.25)
    assert late.series("p", "m", "x").tolist() == [[0, 1, 2, 3, 4, 5, 6, 6.5]]
    assert late.final("p", "m", "once").tolist() == [5.0]
    assert Metrics(runs).late(0).final("p", "m", "x").tolist() == [7.0]


@pytest.mark.parametrize(("largest", "at"), [(False, 2), (True, 1)])
def test_the_best_step_is_chosen_on_validation_data_alone(largest, at):
    seen = {0: 2.0, 1: 3.0, 2: 1.0, 3: 2.0}
    rows = [(step, "validation/x", value) for step, value in seen.items()]
    rows += [(step, "x", 10.0 * step) for step in seen]
    best = Metrics({("p", "m", 0): rows}).best(Quantity("x", largest))
    assert best.final("p", "m", "x").tolist() == [10.0 * at]
    assert best.series("p", "m", "x").tolist() == [[0, 10, 20, 30]]
    doubled = best.derived("y", ["x"], lambda _, values: 2 * values["x"], "p")
    assert doubled.final("p", "m", "y").tolist() == [20.0 * at]
    assert best.renamed("p", "m", "other").final("p", "other", "x").tolist() == [10.0 * at]


def test_a_run_that_diverged_is_best_where_it_had_not_yet():
    rows = [(0, "validation/x", 1.0), (0, "x", 5.0), (1, "validation/x", float("nan")), (1, "x", float("nan"))]
    assert Metrics({("p", "m", 0): rows}).best(Quantity("x")).final("p", "m", "x").tolist() == [5.0]


def test_gains_are_relative_to_the_same_seeds_reference_with_their_sign():
    up, down = Quantity("up", largest=True), Quantity("down")
    runs = {
        ("p", "single", 0): [(9, "up", 50.0), (9, "down", 2.0)],
        ("p", "single", 1): [(9, "up", 80.0), (9, "down", 4.0)],
        ("p", "m", 0): [(9, "up", 60.0), (9, "down", 1.0)],
        ("p", "m", 1): [(9, "up", 80.0), (9, "down", 5.0)],
    }
    gained = Metrics(runs).with_gains("Δm", "p", [up, down])
    np.testing.assert_allclose(gained.final("p", "m", "Δm"), [(20 + 50) / 2, (0 - 25) / 2])
    without = {key: rows for key, rows in runs.items() if key[1] != "single"}
    assert "Δm" not in Metrics(without).with_gains("Δm", "p", [up, down]).quantities("p")


def test_gain_is_positive_where_better_whatever_the_sign():
    ours, theirs = np.array([1.0]), np.array([2.0])
    assert Quantity("m").gain(ours, theirs) == [50.0]
    assert Quantity("m", largest=True).gain(ours, theirs) == [-50.0]
    assert Quantity("m", largest=True).gain(ours, -theirs) == [150.0]


def test_a_method_that_was_not_run_is_named():
    with pytest.raises(MissingRunError, match="other was not run on p"):
        Metrics({("p", "m", 0): [(0, "x", 1.0)]}).final("p", "other", "x")
