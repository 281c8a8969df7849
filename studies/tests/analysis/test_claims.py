"""A verdict follows the metrics, whichever way they point."""

import numpy as np
import pytest

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import Claim
from gradnorm_studies.analysis.metrics import Metrics, Quantity


def metrics(**finals):
    """Runs of one problem, `method=(final of seed 0, final of seed 1, …)`, each from 2.0 at step 0."""
    runs = {}
    for method, values in finals.items():
        for seed, value in enumerate(values):
            runs["p", method, seed] = [(0, "m", 2.0), (10, "m", value)]
    return Metrics(runs)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ((1.0, 1.1, 1.0), "holds"),
        ((1.0, 1.9, 1.4), "undecided"),
        ((1.9, 1.8, 1.9), "does not hold"),
        ((1.0, 1.0), "not enough to say"),
        ((np.nan, 1.0, 1.0), "a run diverged"),
    ],
)
@pytest.mark.parametrize("largest", [False, True])
def test_a_difference_counts_above_two_standard_errors(ours, expected, largest):
    sign = -1 if largest else 1
    found = metrics(a=[sign * v for v in ours], b=[sign * 1.5] * len(ours))
    evidence = claims.beats(Quantity("m", largest), "a", "b")(found, "p")
    assert claims.verdict(evidence.margins) == expected


def test_differences_are_paired_by_seed():
    found = metrics(a=(1.0, 11.0, 21.0), b=(1.2, 11.3, 21.2))
    assert claims.verdict(claims.beats(Quantity("m"), "a", "b")(found, "p").margins) == "holds"


def trace(*values, name="weight/x"):
    return Metrics({("p", "a", 0): [(step, name, v) for step, v in enumerate(values)]})


@pytest.mark.parametrize(("values", "answer"), [((1, 2, 2, 2, 2, 2, 2, 2), True), ((1, 2, 1, 2, 1, 2, 1, 2), False)])
def test_settled(values, answer):
    assert (claims.settled("a", lambda _: ["x"])(trace(*values), "p").margins > 0) == [answer]


@pytest.mark.parametrize(("values", "answer"), [((1, 2, 3, 4, 5), True), ((1, 2, 3, 2, 1), False)])
def test_growing(values, answer):
    assert (claims.growing("a", lambda _: ["x"])(trace(*values), "p").margins > 0) == [answer]


@pytest.mark.parametrize(("values", "answer"), [((2, 1, 1.5), True), ((2, 1.5, 1.51), False)])
def test_deteriorated(values, answer):
    assert (claims.deteriorated(Quantity("m"), "a")(trace(*values, name="m"), "p").margins > 0) == [answer]


@pytest.mark.parametrize(("small", "large", "answer"), [(0.9, 0.1, True), (0.1, 0.9, False)])
def test_suppressed(small, large, answer):
    found = Metrics({("p", "a", 0): [(0, "ratio/s", small), (0, "ratio/l", large)]})
    assert (claims.suppressed("ratio", "a", lambda _: "s", lambda _: "l")(found, "p").margins > 0) == [answer]


@pytest.mark.parametrize(("values", "answer"), [((1, 0.05), True), ((0.05, 0.2), False)])
def test_light(values, answer):
    assert (claims.light("a", "x", 0.1)(trace(*values), "p").margins > 0) == [answer]


@pytest.mark.parametrize(("up", "down", "answer"), [(1.9, 0.1, True), (0.1, 1.9, False), (1.2, 1.1, False)])
def test_ordered(up, down, answer):
    found = Metrics({("p", "a", 0): [(0, "weight/s", up), (0, "weight/l", down)]})
    assert (claims.ordered("a", lambda _: "s", lambda _: "l")(found, "p").margins > 0) == [answer]


@pytest.mark.parametrize(("early", "answer"), [(1.0, True), (1.9, False)])
def test_faster_at_first_looks_early_only(early, answer):
    runs = {}
    for name, values in {"a": [2, early, 3, 3], "b": [2, 1.5, 1, 1]}.items():
        runs["p", name, 0] = [(step, "m", value) for step, value in enumerate(values)]
    look = claims.faster_at_first(Quantity("m"), "a", "b", share=0.34)
    assert (look(Metrics(runs), "p").margins > 0) == [answer]


CLAIM = Claim("a beats b", "§4", claims.beats(Quantity("m"), "a", "b"))


def test_the_table_has_a_row_a_finding_with_figures_and_verdict():
    (table,) = claims.tables(claims.examine([CLAIM], metrics(a=(1.0, 1.1, 1.0), b=(2.0, 2.0, 2.1)), ["p"]))
    figures = "m: a 1.03 ± 0.058, b 2.03 ± 0.058"
    assert table.rows == [("a beats b", "holds", "p", figures, "1 ± 0.06", "3", "§4")]


def test_short_runs_are_not_enough_and_claims_about_methods_not_run_are_left_out():
    found = metrics(a=(1.0, 1.1, 1.0), b=(2.0, 2.0, 2.1))
    assert claims.examine([CLAIM], found, ["p"], is_short=True)[0].verdict == "not enough to say"
    assert claims.examine([CLAIM], metrics(a=(1.0, 1.0, 1.0)), ["p"]) == []
    assert claims.tables([]) == []
