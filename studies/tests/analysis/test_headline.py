"""The first lines of a report say what was compared, who wins and by how much, and how the claims fared."""

from typing import get_args

import numpy as np

from gradnorm_studies.analysis import headline
from gradnorm_studies.analysis.claims import Finding, Verdict
from gradnorm_studies.analysis.metrics import Quantity
from gradnorm_studies.analysis.report import VERDICTS

LOSS, SCORE = Quantity("loss"), Quantity("score %", largest=True)


def ends(**values):
    return {name.replace("_", "-"): np.array(found) for name, found in values.items()}


def test_the_winner_is_ahead_of_the_next_and_of_equal_weights():
    found = headline.best("p", ends(equal=[3.0, 3.1, 3.2], dwa=[2.0, 2.2, 2.1], gradnorm=[1.0, 1.1, 1.2]), LOSS)
    assert found == "On p gradnorm ends best: loss 1.1, ahead of dwa by 1 ± 0.06 and of equal by 2 ± 0."


def test_where_larger_is_better_the_largest_wins_by_a_positive_margin():
    found = headline.best("p", ends(equal=[70.0, 71.0, 72.0], gradnorm=[80.0, 83.0, 83.0]), SCORE)
    assert found == "On p gradnorm ends best: score 82 %, ahead of equal by 11 ± 0.6."


def test_a_lead_within_two_standard_errors_and_a_single_seed_are_named_as_such():
    found = headline.best("p", ends(equal=[1.0, 1.5, 0.9], gradnorm=[0.9, 1.0, 1.2]), LOSS)
    assert found.endswith("ahead of equal by 0.1 ± 0.2 (undecided).")
    assert headline.best("p", ends(equal=[1.0], dwa=[2.0]), LOSS).endswith("ahead of dwa by 1 (one seed).")


def test_runs_that_diverged_never_win():
    found = headline.best("p", ends(equal=[np.nan, 90.0, 90.0], dwa=[1.0, 1.0, 1.0], random=[0.0, 0.0, 0.0]), SCORE)
    assert found.startswith("On p dwa ends best")
    assert "equal" not in found
    assert "diverged" in headline.best("p", ends(equal=[np.nan, 90.0]), SCORE)


def test_what_was_compared_counts_methods_problems_seeds_and_steps():
    found = {problem: ends(equal=[1.0, 2.0], dwa=[1.0, 2.0]) for problem in ("a", "b")}
    assert headline.compared(found, 2500) == "Compared: 2 methods on a and b, 2 seeds, 2,500 steps: equal, dwa."
    assert "2,500 steps (fewer than the study's own)" in headline.compared(found, 2500, is_short=True)


def test_where_an_update_loses_is_said():
    found = {"p": ends(gradnorm=[1.0, 1.0], b=[0.5, 0.5], c=[2.0, 2.0])}
    assert headline.losing(found, LOSS) == ["GradNorm ends, by the mean of loss, on p behind b."]
    assert "behind c" in headline.losing(found, SCORE)[0]
    assert "ahead of all" in headline.losing({"p": ends(closed_form=[1.0], b=[2.0])}, LOSS)[0]


def test_an_update_that_diverged_is_ahead_of_none():
    found = headline.losing({"p": ends(gradnorm=[np.nan, 1.0], b=[2.0, 2.0])}, LOSS)
    assert found == ["GradNorm ends, by the mean of loss, on p with a run that diverged."]
    assert "ahead of all" in headline.losing({"p": ends(gradnorm=[1.0, 1.0], b=[np.nan, 2.0])}, LOSS)[0]


def test_verdicts_are_counted():
    def finding(verdict):
        return Finding("text", "§4", "p", "found", 1.0, 0.1, 3, verdict)

    found = headline.verdicts([finding(v) for v in ("undecided", "holds", "does not hold", "holds")])
    assert found == "Verdicts on 4 claims: holds 2, does not hold 1, undecided 1."
    assert headline.verdicts([finding("a run diverged")]) == "Verdicts on 1 claim: a run diverged 1."
    assert set(get_args(Verdict)) == set(VERDICTS)
    assert "none" in headline.verdicts([])
