"""What every study promises: the same start and batches for all methods, bitwise resumption, a whole report."""

import io
import json
import math
import pickle
from dataclasses import fields, replace

import pytest
import torch
from rich.console import Console

from gradnorm_studies.engine.executor import reproduce
from gradnorm_studies.engine.pool import InProcess
from gradnorm_studies.engine.settings import check, config_table, parse_methods
from gradnorm_studies.engine.training import advance
from gradnorm_studies.studies import STUDIES as REGISTERED
from gradnorm_studies.sweeps.learning_rate import Search
from gradnorm_studies.weightings import METHODS
from small_studies import STUDIES, SWEEPS

BOTH = [*STUDIES, *SWEEPS]


def named(study):
    return study.name


def run(study, out):
    return reproduce(study, out, InProcess, Console(file=io.StringIO()))


@pytest.fixture(scope="module", params=BOTH, ids=named)
def finished(request, tmp_path_factory):
    """A study, its report and its folder, which the tests of one study share."""
    out = tmp_path_factory.mktemp(request.param.name)
    return request.param, run(request.param, out), out


def built(study, job):
    """The experiment of a job; where weights are to come from another run, ones do."""
    torch.manual_seed(job.seed)
    weights = job.weights or (1.0,) * len(study.tasks(job.problem))
    return study.experiment(replace(job, weights=weights, weights_from=None))


def test_every_registered_study_is_in_the_battery():
    assert {study.name for study in BOTH if not isinstance(study, Search)} == set(REGISTERED)


@pytest.mark.parametrize("study", BOTH, ids=named)
def test_it_can_be_sent_to_another_process(study):
    assert pickle.loads(pickle.dumps(study)).jobs() == study.jobs()


@pytest.mark.parametrize("study", REGISTERED.values(), ids=list(REGISTERED))
def test_its_settings_say_what_they_are_and_why_and_its_defaults_are_within_bounds(study):
    for config in (study.default, *study.presets.values()):
        check(config)
        for field in fields(config):
            what, why = field.metadata["what"], field.metadata["why"]
            assert what.endswith(".")
            assert why.endswith(".")
            assert what != why


def test_the_settings_of_a_report_say_what_they_are_and_why():
    table = config_table(STUDIES[0].config)
    assert table.header == ("setting", "value", "what", "why")
    assert (
        "batch",
        "8",
        "Batch size; every step has new inputs, so there is no overfitting.",
        "Open in the paper.",
    ) in (table.rows)


@pytest.mark.parametrize("study", BOTH, ids=named)
def test_runs_have_names_of_their_own_and_static_ones_a_source_among_them(study):
    jobs = study.jobs()
    assert len({job.file_name for job in jobs}) == len(jobs)
    assert {job.problem for job in jobs} == set(study.problems)
    assert all(job.weights_from in jobs for job in jobs if job.weights_from)


@pytest.mark.parametrize("study", STUDIES, ids=named)
def test_every_method_that_it_names_is_run(study):
    methods = parse_methods(study.config)
    for problem in study.problems:
        assert {job.method for job in study.jobs() if job.problem == problem} <= set(methods)
    assert {job.method for job in study.jobs()} == set(methods) <= set(METHODS)


@pytest.mark.parametrize("study", STUDIES, ids=named)
def test_all_methods_start_from_the_same_values_and_see_the_same_batches(study):
    seen = {}
    for job in study.jobs():
        if job.method != "single":
            experiment = built(study, job)
            values = torch.cat([value.flatten() for value in experiment.model.parameters()])
            losses = torch.stack([experiment.losses(step) for step in (0, 1)]).detach()
            first = seen.setdefault((job.problem, job.seed), (values, losses))
            assert torch.equal(values, first[0])
            assert torch.equal(losses, first[1])
            assert not torch.equal(losses[0], losses[1])


@pytest.mark.parametrize("study", STUDIES, ids=named)
def test_validation_and_test_are_other_data_with_the_same_quantities(study):
    for problem in study.problems:
        experiment = built(study, next(job for job in study.jobs() if job.problem == problem))
        advance(experiment, 0, [], record=False)  # at the start, ratios are 1 on any data
        experiment.model.eval()
        with torch.no_grad():
            validation, test = experiment.evaluate("validation"), experiment.evaluate("test")
        assert study.metric.name in validation.keys() <= test.keys()
        assert any(validation[name] != test[name] for name in validation)


@pytest.mark.parametrize("study", STUDIES, ids=named)
@pytest.mark.parametrize("method", ["gradnorm", "closed-form", "uncertainty", "dwa"])
def test_stopped_and_resumed_equals_uninterrupted_bitwise(study, method, tmp_path):
    study = type(study)(replace(study.config, steps=50, record_every=25))
    job = next((job for job in study.jobs() if job.method == method), None)
    if job is None:
        pytest.skip(f"{study.name} has no {method}")
    whole, parts = tmp_path / "runs", tmp_path / "parts" / "runs"
    whole.mkdir()
    parts.mkdir(parents=True)
    assert study.train(job, whole, lambda step: False)
    assert not study.train(job, parts, lambda step: step == 20)
    assert [path.suffix for path in parts.iterdir()] == [".checkpoint"]
    assert not study.train(job, parts, lambda step: step == 40)
    assert study.train(job, parts, lambda step: False)
    name = f"{job.file_name}.json"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert [path.name for path in parts.iterdir()] == [name]


def test_end_to_end_it_writes_its_folder_and_a_second_start_computes_nothing(finished):
    study, report, out = finished
    assert {path.name for path in out.iterdir()} >= {
        "config.json", "manifest.json", "metrics.csv", "table.md", "report.html",
    }  # fmt: skip
    assert json.loads((out / "config.json").read_text())["study"] == study.name
    assert all(figure.path.stat().st_size > 1000 for figure in report.figures)
    rows = (out / "metrics.csv").read_text().splitlines()
    assert rows[0] == "problem,method,seed,step,quantity,value"
    assert {int(line.split(",")[3]) for line in rows[1:]} >= {0, study.config.steps}
    assert all(math.isfinite(float(line.rsplit(",", 1)[1])) for line in rows[1:])
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    run(study, out)
    assert {name: (out / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("finished", [*STUDIES, *SWEEPS[:2]], ids=named, indirect=True)
def test_every_claim_is_answered_and_a_single_seed_is_never_enough(finished):
    study, _, out = finished
    found = json.loads((out / "claims.json").read_text())
    assert {finding["text"] for finding in found} == {claim.text for claim in study.asked()}
    assert {finding["verdict"] for finding in found} == {"not enough to say"}
    table = (out / "table.md").read_text().replace(r"\|", "|")
    assert all(finding["text"] in table for finding in found)
    ends = json.loads((out / "ends.json").read_text())["ends"]
    assert ends
    assert all(len(values) == 1 for found in ends.values() for values in found.values())


@pytest.mark.parametrize("finished", STUDIES, ids=named, indirect=True)
def test_static_takes_the_time_averaged_weights_of_its_own_seed(finished):
    study, _, out = finished
    jobs = [job for job in study.jobs() if job.weights_from]
    if not jobs:
        pytest.skip(f"{study.name} has no static weights")
    for job in jobs:
        ends = [
            json.loads((out / "runs" / f"{one.file_name}.json").read_text())["averaged_weights"]
            for one in (job, job.weights_from)
        ]
        assert ends[0] == pytest.approx(ends[1])
        assert ends[0] != [1.0] * len(ends[0])
