"""Every α trains as its base would with that α, and the claims are counted as they are written."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.engine.training import carry_out
from gradnorm_studies.sweeps.alpha import ALPHAS, Alpha, AlphaConfig, _claims
from gradnorm_studies.sweeps.registry import BASES, base, gain

DIGITS = Alpha(AlphaConfig("digits", seeds=2, steps=6, record_every=3))


def test_every_base_can_be_swept():
    for name, study in BASES.items():
        jobs = Alpha(Alpha.presets[name]).jobs()
        problems = {(job.problem, job.seed) for job in study().jobs()}
        assert len({job.file_name for job in jobs}) == len(jobs) == len(problems) * (len(ALPHAS) + 1)


def test_left_out_a_setting_is_the_bases_own():
    for name, study in BASES.items():
        assert base(name, Alpha.presets[name]).config == study().config


def job_at(alpha):
    return next(job for job in DIGITS.jobs() if job.label == f"α={alpha:g}")


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_job_has_the_alpha_it_is_called_by(alpha):
    assert DIGITS.experiment(job_at(alpha)).weighting.balancer.alpha == alpha


def test_a_job_trains_as_the_base_at_that_alpha(tmp_path):
    there = base("digits", DIGITS.config)
    there = replace(there, config=replace(there.config, alpha=0.5))
    results = []
    for study, folder in ((DIGITS, tmp_path / "sweep"), (there, tmp_path / "base")):
        folder.mkdir()
        assert carry_out(study, job_at(0.5), folder, lambda step: False)
        results.append((folder / f"{job_at(0.5).file_name}.json").read_bytes())
    assert results[0] == results[1]


def test_equal_weights_are_the_bases_own():
    job = next(job for job in DIGITS.jobs() if job.method == "equal")
    torch.manual_seed(job.seed)
    experiment = DIGITS.experiment(job)
    assert experiment.weighting.weights.tolist() == [1.0, 1.0, 1.0]


def made_up(ends: dict[float, float], noise: dict[float, float] | None = None) -> Metrics:
    """Runs on the toy problem (lower is better) that end as told, with weights α apart that jump by `noise`."""
    study = BASES["toy"]
    runs = {("T=2", "equal", 0): [(0, study.metric, 2.0)]}
    for alpha, end in ends.items():
        rows = [(step, study.metric, end) for step in range(8)]
        for step in range(8):
            jump = (noise or {}).get(alpha, 0.0) * (-1) ** step
            rows += [(step, "weight/a", 1 + alpha / 10 + jump), (step, "weight/b", 1 - alpha / 10 - jump)]
        runs["T=2", f"α={alpha:g}", 0] = rows
    return Metrics(runs)


ENDS = {0.0: 2.2, 0.5: 1.9, 1.0: 1.5, 1.5: 1.0, 2.0: 1.2, 3.0: 2.4}


def answers(metrics):
    return [bool(claim.look(metrics, "T=2").answers[0]) for claim in _claims(BASES["toy"]())]


def test_the_papers_picture_holds_in_all_its_claims():
    assert answers(made_up(ENDS, {3.0: 0.5})) == [True, True, True, True]


@pytest.mark.parametrize(
    ("claim", "metrics"),
    [
        (0, made_up({**ENDS, 0.5: 2.1, 1.0: 2.1}, {3.0: 0.5})),
        (1, made_up({**ENDS, 0.5: 0.9}, {3.0: 0.5})),
        (2, made_up(ENDS, {1.0: 0.9, 3.0: 0.5})),
        (3, made_up(ENDS)),
        (3, made_up(ENDS, {1.5: 0.2, 3.0: 0.5})),
    ],
)
def test_each_claim_can_fail(claim, metrics):
    assert not answers(metrics)[claim]


def test_one_alpha_that_loses_is_still_almost_any():
    assert answers(made_up({**ENDS, 0.5: 2.1}, {3.0: 0.5}))[0]


def test_gain_is_positive_where_better_whatever_the_metric():
    ours, theirs = np.array([1.0]), np.array([2.0])
    assert gain(BASES["toy"], ours, theirs) == [50.0]
    assert gain(BASES["digits"], ours, theirs) == [-50.0]
    assert gain(BASES["rl"], ours, -theirs) == [150.0]
