"""Every α trains as its base would with that α, and the claims are counted as they are written."""

import math
from dataclasses import replace

import pytest

from gradnorm_studies.analysis.claims import RULES
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.sweeps.alpha import ALPHAS, Alpha, AlphaConfig
from gradnorm_studies.sweeps.registry import BASES

SWEEP = Alpha(AlphaConfig(2, 6, 3, "helmholtz"))
METRIC = Alpha().metric.name


@pytest.mark.parametrize("name", [name for name in BASES if name != "faces"])  # which looks for its data first
def test_every_base_can_be_swept(name):
    place = {"root": "."} if name == "nyuv2" else {}
    sweep, study = Alpha(replace(Alpha.presets[name], **place)), BASES[name]()
    jobs, study = sweep.jobs(), type(study)(replace(study.config, **place))
    problems = {(job.problem, job.seed) for job in study.jobs()}
    assert len({job.file_name for job in jobs}) == len(jobs) == len(problems) * (len(RULES) * len(ALPHAS) + 1)
    assert sweep.base.config == replace(study.config, methods=Alpha.methods)


def test_settings_of_the_base_can_be_given():
    base = Alpha(AlphaConfig(2, 6, 3, "helmholtz", base_settings="inside=32, alpha=0.3")).base
    assert (base.config.inside, base.config.alpha, base.config.steps) == (32, 0.3, 6)


OF_THE_SWEEP = ["seeds=9", "steps=9", "record_every=9", "methods=equal"]


@pytest.mark.parametrize("given", ["insides=3", "inside", "inside=many", *OF_THE_SWEEP])
def test_bad_settings_of_the_base_are_named(given):
    with pytest.raises(UsageError, match=f"{given}.*name=value.*inside"):
        Alpha(AlphaConfig(2, 6, 3, "helmholtz", base_settings=given))


@pytest.mark.parametrize(
    ("on", "given", "said"),
    [
        ("helmholtz", "inside=0", "--inside is 0: give a number at least 1"),
        ("helmholtz", "alpha=nan", "--alpha is nan"),
        ("vision", "model=net", "--model is 'net': choose one of"),
        ("vision", "preset=gpu", "--base-settings has 'preset=gpu'"),
        ("faces", "root=faces.npz", "--base-settings has 'root=faces.npz'"),
    ],
)
def test_settings_of_the_base_have_its_bounds_and_neither_preset_nor_place(on, given, said):
    with pytest.raises(UsageError, match=said):
        Alpha(AlphaConfig(2, 6, 3, on, base_settings=given))


def test_the_data_s_place_is_the_base_s_and_refused_where_none_is_read():
    assert Alpha(replace(Alpha.presets["nyuv2"], root="a,b/c.npz")).base.config.root == "a,b/c.npz"
    with pytest.raises(UsageError, match=r"--root is c.npz.*helmholtz"):
        Alpha(AlphaConfig(2, 6, 3, "helmholtz", "c.npz"))


def test_settings_of_the_base_are_recorded_and_its_extra_is_the_sweep_s():
    sweep = Alpha(AlphaConfig(2, 6, 3, "rl", base_settings="batch=32"))
    assert sweep.recorded()["base"]["batch"] == 32
    assert sweep.extra == sweep.base.extra is not None


def job_at(alpha, method="gradnorm"):
    return next(job for job in SWEEP.jobs() if job.label == f"{method} α={alpha:g}")


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("method", RULES.values())
def test_a_job_has_the_alpha_it_is_called_by(alpha, method):
    assert SWEEP.experiment(job_at(alpha, method)).weighting.balancer.alpha == alpha


def test_a_job_trains_as_the_base_at_that_alpha(tmp_path):
    base = type(SWEEP.base)(replace(SWEEP.base.config, alpha=0.5))
    job = job_at(0.5)
    results = []
    for study, one, folder in ((SWEEP, job, tmp_path / "a"), (base, replace(job, alpha=None), tmp_path / "b")):
        folder.mkdir()
        assert study.train(one, folder, lambda step: False)
        results.append((folder / f"{job.file_name}.json").read_bytes())
    assert results[0] == results[1]


def made_up(ends: dict[float, float], noise: dict[float, float] | None = None) -> Metrics:
    """Runs on the toy problem (lower is better) that end as told, with weights α apart that jump by `noise`."""
    runs = {("T=2", "equal", 0): [(0, METRIC, 2.0)]}
    for alpha, end in ends.items():
        rows = [(step, METRIC, end) for step in range(8)]
        for step in range(8):
            jump = (noise or {}).get(alpha, 0.0) * (-1) ** step
            rows += [(step, "weight/a", 1 + alpha / 10 + jump), (step, "weight/b", 1 - alpha / 10 - jump)]
        runs |= {("T=2", f"{method} α={alpha:g}", 0): rows for method in RULES.values()}
    return Metrics(runs)


ENDS = {0.0: 2.2, 0.5: 1.9, 1.0: 1.5, 1.5: 1.0, 2.0: 1.2, 3.0: 2.4}


def answers(metrics):
    """Of both rules, which have the same runs here."""
    found = [bool(claim.look(metrics, "T=2").margins[0] > 0) for claim in Alpha().asked()]
    assert found[:4] == found[4:]
    return found[:4]


def test_the_papers_picture_holds_in_all_its_claims():
    assert answers(made_up(ENDS, {3.0: 0.5})) == [True, True, True, True]


@pytest.mark.parametrize(
    ("claim", "metrics"),
    [
        (0, made_up({**ENDS, 0.5: 2.1, 1.0: 2.1}, {3.0: 0.5})),
        (0, made_up({**ENDS, 0.5: math.nan, 1.0: 2.1}, {3.0: 0.5})),
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


def test_an_alpha_that_diverges_is_neither_the_best_nor_one_that_wins():
    metrics = made_up({**ENDS, 0.5: math.nan, 3.0: math.nan}, {3.0: 0.5})
    assert answers(metrics)[:2] == [True, True]
    assert "best α 1.5" in [claim.look(metrics, "T=2").found for claim in Alpha().asked()]
