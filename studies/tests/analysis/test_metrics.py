"""Ends without jitter."""

from gradnorm_studies.analysis.metrics import Metrics


def test_late_is_the_mean_over_the_last_share():
    runs = {("p", "m", 0): [(step, "x", float(step)) for step in range(8)] + [(7, "once", 5.0)]}
    late = Metrics(runs).late(0.25)
    assert late.series("p", "m", "x").tolist() == [[6.5]]
    assert late.steps("p", "m", "x").tolist() == [7]
    assert late.final("p", "m", "once").tolist() == [5.0]
    assert Metrics(runs).late(0).final("p", "m", "x").tolist() == [7.0]
