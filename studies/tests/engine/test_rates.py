"""Which of the searched learning rates a run takes."""

import pytest

from gradnorm_studies.engine import rates

SEARCHED = {"1000": {"rooms": {"equal": 0.1}, "nyuv2": {"equal": 0.2}}, "3000": {"rooms": {"equal": 0.3}}}


@pytest.mark.parametrize(
    ("steps", "problem", "label", "expected"),
    [
        (1000, "rooms", "equal", 0.1),
        (1500, "rooms", "equal", 0.1),
        (2500, "rooms", "equal", 0.3),
        (3000, "nyuv2", "equal", 0.2),  # the nearest length at which this problem was searched
        (3000, "rooms", "dwa", None),
        (3000, "faces", "equal", None),
    ],
)
def test_the_rate_is_that_of_the_nearest_length(monkeypatch, steps, problem, label, expected):
    monkeypatch.setattr(rates, "_searched", lambda study: SEARCHED)
    assert rates.chosen("vision", steps, problem, label) == expected
