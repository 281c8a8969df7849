"""A verdict follows the metrics, whichever way they point."""

import numpy as np
import pytest

from gradnorm_studies.analysis import claims
from gradnorm_studies.analysis.claims import Claim
from gradnorm_studies.analysis.metrics import Metrics


def metrics(**finals):
    """Runs of one problem, `method=(final of seed 0, final of seed 1, …)`, each from 2.0 at step 0."""
    runs = {}
    for method, values in finals.items():
        for seed, value in enumerate(values):
            runs["p", method, seed] = [(0, "m", 2.0), (10, "m", value)]
    return Metrics(runs)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [((1.0, 1.0), "holds"), ((1.0, 1.9), "mixed"), ((1.9, 1.9), "does not hold"), ((np.nan, np.nan), "does not hold")],
)
@pytest.mark.parametrize("largest", [False, True])
def test_below_counts_seeds_both_ways(ours, expected, largest):
    sign = -1 if largest else 1
    found = metrics(a=[sign * v for v in ours], b=(sign * 1.5, sign * 1.5))
    evidence = claims.below("m", "a", "b", largest=largest)(found, "p")
    assert claims.verdict(evidence.answers) == expected


def trace(*values, name="weight/x"):
    return Metrics({("p", "a", 0): [(step, name, v) for step, v in enumerate(values)]})


@pytest.mark.parametrize(("values", "answer"), [((1, 2, 2, 2, 2, 2, 2, 2), True), ((1, 2, 1, 2, 1, 2, 1, 2), False)])
def test_settled(values, answer):
    assert claims.settled("a", lambda _: ["x"])(trace(*values), "p").answers == [answer]


@pytest.mark.parametrize(("values", "answer"), [((1, 2, 3, 4, 5), True), ((1, 2, 3, 2, 1), False)])
def test_growing(values, answer):
    assert claims.growing("a", lambda _: ["x"])(trace(*values), "p").answers == [answer]


@pytest.mark.parametrize(("values", "answer"), [((2, 1, 1.5), True), ((2, 1.5, 1.51), False)])
def test_deteriorated(values, answer):
    assert claims.deteriorated("m", "a")(trace(*values, name="m"), "p").answers == [answer]


@pytest.mark.parametrize(("small", "large", "answer"), [(0.9, 0.1, True), (0.1, 0.9, False)])
def test_suppressed(small, large, answer):
    found = Metrics({("p", "a", 0): [(0, "ratio/s", small), (0, "ratio/l", large)]})
    assert claims.suppressed("ratio", "a", lambda _: "s", lambda _: "l")(found, "p").answers == [answer]


@pytest.mark.parametrize(("up", "down", "answer"), [(1.9, 0.1, True), (0.1, 1.9, False), (1.2, 1.1, False)])
def test_ordered(up, down, answer):
    found = Metrics({("p", "a", 0): [(0, "weight/s", up), (0, "weight/l", down)]})
    assert claims.ordered("a", lambda _: "s", lambda _: "l")(found, "p").answers == [answer]


@pytest.mark.parametrize(("early", "answer"), [(1.0, True), (1.9, False)])
def test_faster_at_first_looks_early_only(early, answer):
    runs = {}
    for name, values in {"a": [2, early, 3, 3], "b": [2, 1.5, 1, 1]}.items():
        runs["p", name, 0] = [(step, "m", value) for step, value in enumerate(values)]
    look = claims.faster_at_first("m", "a", "b", share=0.34)
    assert look(Metrics(runs), "p").answers == [answer]


def test_the_table_has_a_row_a_claim_with_figures_and_verdict():
    claim = Claim("a beats b", "§4", claims.below("m", "a", "b"))
    table = claims.table([claim], metrics(a=(1.0, 1.0), b=(2.0, 0.5)), ["p"])
    assert table.rows == [("a beats b", "§4", "p", "a 1 ± 0, b 1.25 ± 1.1", "1 of 2", "mixed")]


def test_where_a_method_loses_is_said():
    found = metrics(a=(1.0,), b=(0.5,), c=(2.0,))
    assert "behind b" in claims.losses_of("a", found, ["p"], "m")
    assert "behind c" in claims.losses_of("a", found, ["p"], "m", largest=True)
    assert "behind no other method" in claims.losses_of("b", found, ["p"], "m")
