"""A run that was stopped gives the same bits as one that was not, and nothing in a folder is ever lost."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gradnorm_studies.control.dqn import RlConfig
from gradnorm_studies.control.study import Rl
from gradnorm_studies.digits import Digits, DigitsConfig
from gradnorm_studies.engine.executor import _execute_on, reproduce
from gradnorm_studies.engine.study import Interrupted, Job, UsageError
from gradnorm_studies.engine.training import carry_out, train
from gradnorm_studies.studies import STUDIES
from gradnorm_studies.sweeps.alpha import Alpha, AlphaConfig
from gradnorm_studies.sweeps.learning_rate import Search
from gradnorm_studies.sweeps.registry import BASES
from gradnorm_studies.toy import Toy, ToyConfig

TOY = Toy(ToyConfig(seeds=1, steps=8, record_every=4, batch=8, test_size=16))
DIGITS = Digits(DigitsConfig(seeds=1, steps=4, record_every=2, batch=8, test_size=16))
RL = Rl(RlConfig(seeds=1, steps=4, record_every=2, batch=8, learning_starts=4, buffer_size=64, eval_episodes=1))
ALPHA = Alpha(AlphaConfig("digits", seeds=1, steps=4, record_every=2))
SMALL = [TOY, DIGITS, RL]


def quiet():
    return Console(file=io.StringIO())


def unstopped(step):
    return False


@pytest.mark.parametrize("study", SMALL, ids=lambda s: s.name)
@pytest.mark.parametrize("method", ["gradnorm", "uncertainty", "equal"])
def test_stopped_and_resumed_equals_uninterrupted_bitwise(study, method, tmp_path):
    study = replace(study, config=replace(study.config, steps=50, record_every=10))
    job = next(job for job in study.jobs() if job.method == method)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert train(study, job, whole, unstopped)
    assert not train(study, job, parts, lambda step: step == 20)
    assert [path.suffix for path in parts.iterdir()] == [".checkpoint"]
    assert not train(study, job, parts, lambda step: step == 40)
    assert train(study, job, parts, unstopped)
    name = f"{job.file_name}.json"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert [path.name for path in parts.iterdir()] == [name]


@pytest.mark.parametrize("study", SMALL, ids=lambda s: s.name)
def test_all_methods_start_from_the_same_values_and_see_the_same_batches(study):
    seen = []
    for job in study.jobs():
        if job.method == "single":
            continue
        torch.manual_seed(job.seed)
        n_tasks = len(study.experiment(replace(job, method="equal")).tasks)
        torch.manual_seed(job.seed)
        experiment = study.experiment(replace(job, weights=job.weights or (1.0,) * n_tasks))
        values = torch.nn.utils.parameters_to_vector(experiment.model.parameters())
        losses = torch.stack([experiment.losses(step) for step in (0, 1, 7)])
        seen.append((job.problem, job.seed, values, losses))
    for problem, seed, values, losses in seen:
        first = next(entry for entry in seen if entry[:2] == (problem, seed))
        assert torch.equal(values, first[2])
        assert torch.equal(losses, first[3])


def test_seeds_and_steps_give_other_batches():
    job = TOY.jobs()[0]
    experiment, other = TOY.experiment(job), TOY.experiment(replace(job, seed=1))
    assert not torch.equal(experiment.losses(0), experiment.losses(1))
    assert not torch.equal(experiment.losses(0), other.losses(0))


@pytest.mark.parametrize("study", [*SMALL, Search(DIGITS), ALPHA], ids=lambda s: s.name)
def test_a_small_study_end_to_end_writes_its_folder(study, tmp_path):
    out = tmp_path / "out"
    report = reproduce(study, out, workers=0, console=quiet())
    assert {path.name for path in out.iterdir()} >= {
        "config.json", "manifest.json", "metrics.csv", "table.md", "report.html",
    }  # fmt: skip
    assert json.loads((out / "config.json").read_text())["study"] == study.name
    assert all(figure.path.stat().st_size > 1000 for figure in report.figures)
    rows = (out / "metrics.csv").read_text().splitlines()
    assert rows[0] == "problem,method,seed,step,quantity,value"
    assert {int(line.split(",")[3]) for line in rows[1:]} >= {0, study.config.steps}


def test_a_second_start_computes_nothing_and_says_the_same(tmp_path):
    reproduce(DIGITS, tmp_path, workers=0, console=quiet())
    assert json.loads((tmp_path / "manifest.json").read_text())["runs_computed_by_the_last_start"] == 5
    metrics, report = (tmp_path / "metrics.csv").read_bytes(), (tmp_path / "report.html").read_bytes()
    reproduce(DIGITS, tmp_path, workers=0, console=quiet())
    assert json.loads((tmp_path / "manifest.json").read_text())["runs_computed_by_the_last_start"] == 0
    assert (tmp_path / "metrics.csv").read_bytes() == metrics
    assert (tmp_path / "report.html").read_bytes() == report


def test_static_takes_the_time_averaged_weights_of_its_own_seed(tmp_path):
    reproduce(DIGITS, tmp_path, workers=0, console=quiet())
    gradnorm, static = (
        json.loads((tmp_path / "runs" / f"digits_{m}_0.json").read_text()) for m in ("gradnorm", "static")
    )
    assert static["averaged_weights"] == gradnorm["averaged_weights"] != [1.0, 1.0, 1.0]


def test_a_folder_of_other_settings_is_refused_and_untouched(tmp_path):
    reproduce(DIGITS, tmp_path, workers=0, console=quiet())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = replace(DIGITS, config=replace(DIGITS.config, steps=6))
    with pytest.raises(UsageError, match=r"--out .*steps: 4 there, 6 asked for.*another --out"):
        reproduce(other, tmp_path, workers=0, console=quiet())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds no run of gradnorm"):
        reproduce(TOY, tmp_path, workers=0, console=quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_stopping_in_the_middle_is_reported_as_such(tmp_path, monkeypatch):
    def stopped(self, job, step):
        raise KeyboardInterrupt

    monkeypatch.setattr("gradnorm_studies.engine.executor.Board.show", stopped)
    with pytest.raises(Interrupted):
        reproduce(DIGITS, tmp_path, workers=0, console=quiet())


def test_a_pool_hands_back_every_run_and_a_report_that_comes_late_is_not_shown(tmp_path):
    seen, submitted = [], []

    class Board:
        def show(self, job, step):
            seen.append(("shown", job))

        def finish(self, job):
            seen.append(("finished", job))

    class Slow:
        slots = 1

        def submit(self, job):
            assert carry_out(DIGITS, job, tmp_path / "runs", unstopped)
            submitted.append(job)
            done = Future()
            done.set_result(True)
            return done

        def collect(self, job, future):
            assert future.result()

        def reports(self):
            return [(job, 0) for job in submitted]  # those of finished runs as well

    (tmp_path / "runs").mkdir()
    _execute_on(Slow(), DIGITS.jobs(), tmp_path, Board())
    assert len(submitted) == len(DIGITS.jobs())
    assert seen == [(what, job) for job in submitted for what in ("shown", "finished")]


def test_file_names_are_safe_and_distinct():
    names = [job.file_name for study in SMALL for job in study.jobs()]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name and " " not in name for name in names)
    assert Job("T=2", "static", 0, 1e-3, label="grid 1.9 : 0.1").file_name == "T-2_grid-1.9-0.1_0"


def test_search_seeds_are_never_reported():
    reported = {job.seed for study in STUDIES.values() for job in study().jobs()}
    searched = {job.seed for study in BASES.values() for job in Search(study()).jobs()}
    assert not reported & searched


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_in_worker_processes_exits_130_and_the_second_start_gives_the_same(tmp_path):
    size = ["--seeds", "1", "--steps", "300", "--batch", "4", "--test-size", "8", "--record-every", "100"]
    command = [sys.executable, "-c", "from gradnorm_studies.cli import main; main()", "reproduce", "digits", *size]
    out = tmp_path / "stopped"
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("runs/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    study = Digits(DigitsConfig(seeds=1, steps=300, batch=4, test_size=8, record_every=100))
    reproduce(study, out, workers=0, console=quiet())
    reproduce(study, tmp_path / "whole", workers=0, console=quiet())
    assert (out / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
