"""Runs are trained in any pool, in an order that their weights allow, and nothing in a folder is ever lost."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import Future
from dataclasses import replace

import pytest
from rich.console import Console

from commands import command
from faces_files import write_prepared
from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.engine import rates, results
from gradnorm_studies.engine.errors import Interrupted, UsageError
from gradnorm_studies.engine.executor import _execute, reproduce
from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.engine.pool import InProcess, Pool
from gradnorm_studies.engine.progress import Board, board
from gradnorm_studies.engine.results import alone, claim, writing
from gradnorm_studies.faces.study import FacesStudy
from gradnorm_studies.studies import STUDIES as REGISTERED
from gradnorm_studies.sweeps.learning_rate import FIRST_SEED, Search
from gradnorm_studies.toy import Toy
from small_studies import STUDIES

METHODS = "gradnorm,equal,static"
TINY = {"seeds": 1, "steps": 2, "record_every": 1, "batch": 4, "validation": 6, "methods": "equal", "unit": "crop"}
TOY = Toy(replace(Toy.default, seeds=1, steps=4, record_every=2, batch=8, test_size=16, methods=METHODS))


def run(study, out, open_pool=InProcess):
    return reproduce(study, out, open_pool, Console(file=io.StringIO()))


def test_a_folder_of_other_settings_is_refused_and_untouched(tmp_path):
    run(TOY, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"--out .*steps: 4 there, 6 asked for.*another --out"):
        run(Toy(replace(TOY.config, steps=6)), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_runs_on_other_data_are_refused(tmp_path):
    root = write_prepared(tmp_path / "faces.npz")
    study = FacesStudy(replace(FacesStudy.default, root=str(root), **TINY))
    run(study, tmp_path / "out")
    write_prepared(root, seed=1)
    with pytest.raises(UsageError, match=r"root: .* bytes, crc32 .* there, .* asked for"):
        run(study, tmp_path / "out")


def test_a_folder_without_any_run_takes_other_settings(tmp_path):
    claim(tmp_path, TOY.name, TOY.recorded(), TOY.learning_rates())
    (tmp_path / "runs").rmdir()  # as by hand, to start again
    other = Toy(replace(TOY.config, steps=6))
    run(other, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 6


def test_runs_of_learning_rates_that_a_later_search_changed_are_refused(tmp_path, monkeypatch):
    run(TOY, tmp_path)
    monkeypatch.setattr(rates, "chosen", lambda study, steps, problem, label: 0.5 if label == "equal" else None)
    with pytest.raises(UsageError, match=r"learning_rates T=2 equal: 0\.\d+ there, 0\.5 asked for.* \d+ more"):
        run(TOY, tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds no run of gradnorm"):
        run(TOY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_cannot_be_written_is_said_before_any_training(tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "out", tmp_path / "file"):
        with pytest.raises(UsageError, match=r"--out.*file.*another --out"):
            run(TOY, out)
    out = tmp_path / "out"
    claim(out, TOY.name, TOY.recorded(), TOY.learning_rates())
    (out / "metrics.csv").mkdir()
    with pytest.raises(UsageError, match=r"metrics\.csv cannot be written.*run the same command again"):
        run(TOY, out)
    assert not list((out / "runs").iterdir())
    (out / "metrics.csv").rmdir()
    run(TOY, out)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC])
def test_what_cannot_be_written_after_training_loses_no_run(tmp_path, monkeypatch, code):
    def refuse(self, path):
        raise OSError(code, "refused", None if code == errno.ENOSPC else str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write_csv", refuse)
        with pytest.raises(UsageError, match=r"refused.*run the same command again"):
            run(TOY, tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    run(TOY, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == kept


def test_a_file_of_another_folder_that_cannot_be_read_is_no_usage_error(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "out"):
        (tmp_path / "data" / "photo.png").read_bytes()
    with pytest.raises(ConnectionError), writing(tmp_path / "out"):
        raise ConnectionError("the cluster is gone")


def test_a_folder_in_which_another_command_trains_is_refused(tmp_path):
    claim(tmp_path, TOY.name, TOY.recorded(), TOY.learning_rates())
    with alone(tmp_path), pytest.raises(UsageError, match=r"--out .* is in use.*Wait until it ends"):
        run(TOY, tmp_path)
    run(TOY, tmp_path)


def test_a_second_start_computes_only_what_is_missing(tmp_path):
    run(TOY, tmp_path)
    table = (tmp_path / "table.md").read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    lost = tmp_path / "runs" / "T-2_equal_0.json"
    before = lost.read_bytes()
    del kept[lost]
    lost.unlink()
    run(TOY, tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["runs"] == len(kept) + 2, "all, and one of them again"
    assert lost.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (tmp_path / "table.md").read_bytes() == table


def test_the_report_tells_when_its_runs_were_trained_and_not_when_it_was_written(tmp_path, monkeypatch):
    def facts(day, commit):
        return {"date": day, "commit": commit, "platform": "Linux, 2 CPUs"}

    def start():
        run(TOY, tmp_path)
        return (tmp_path / "report.html").read_text(), json.loads((tmp_path / "manifest.json").read_text())

    monkeypatch.setattr(results, "_facts", lambda: facts("2026-01-01", "abc"))
    page, first = start()
    assert re.search(r"Trained 2026-01-01 in \d+ s; commit abc; Linux, 2 CPUs", page)
    assert first["seconds"] > 0
    monkeypatch.setattr(results, "_facts", lambda: facts("2026-01-02", "def"))
    assert start() == (page, first)
    (tmp_path / "runs" / "T-2_equal_0.json").unlink()
    page, second = start()
    assert "Trained 2026-01-01 and 2026-01-02 in" in page
    assert second["commit"] == "abc; def"
    assert second["platform"] == "Linux, 2 CPUs"
    assert second["seconds"] > first["seconds"]


def test_stopping_in_the_middle_is_reported_as_such(tmp_path, monkeypatch):
    def stopped(self, job, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(Board, "show", stopped)
    with pytest.raises(Interrupted):
        run(TOY, tmp_path)


class Slow(Pool):
    """Takes one run at a time, and reports the steps of those that have ended as well."""

    slots = 1

    def __init__(self, study, out, show):
        self.study, self.out, self.show, self.submitted = study, out, show, []

    def __exit__(self, *exception):
        pass

    def submit(self, job):
        done = Future()
        done.set_result(self.study.train(job, self.out / "runs", lambda step: False))
        self.submitted.append(job)
        return done

    def poll(self):
        for job in self.submitted:
            self.show(job, 0)


def test_every_run_is_trained_once_and_a_report_that_comes_late_is_not_shown(tmp_path):
    (tmp_path / "runs").mkdir()
    jobs = TOY.jobs()
    shown = board(Console(file=io.StringIO()), "toy", 4, len(jobs), 0)
    pool = Slow(TOY, tmp_path, shown.show)
    _execute(pool, list(jobs), tmp_path, shown, results.Manifest(tmp_path))
    assert {job.key for job in pool.submitted} == {job.key for job in jobs}
    assert len(pool.submitted) == len(jobs)
    assert not shown._reached


def test_weights_of_a_static_run_are_there_before_it_is_submitted(tmp_path):
    (tmp_path / "runs").mkdir()
    jobs = [job for job in TOY.jobs() if job.method in ("static", "gradnorm")][::-1]  # static first
    shown = board(Console(file=io.StringIO()), "toy", 4, len(jobs), 0)
    pool = Slow(TOY, tmp_path, shown.show)
    _execute(pool, list(jobs), tmp_path, shown, results.Manifest(tmp_path))
    assert all(job.weights for job in pool.submitted if job.method == "static")


def test_file_names_are_safe():
    assert Job("T=2", "static", 0, 1e-3, label="grid 1.9 : 0.1").file_name == "T-2_grid-1.9-0.1_0"


def test_search_seeds_are_never_reported():
    assert {job.seed for study in STUDIES for job in Search(study).jobs()} == {FIRST_SEED}
    assert max(study.default.seeds for study in REGISTERED.values()) <= FIRST_SEED


def start(out, *options):
    """A study in a process and a session of its own, with its first run finished."""
    size = ["--seeds", "1", "--steps", "300", "--batch", "4", "--test-size", "8", "--record-every", "100"]
    process = subprocess.Popen(
        command("toy", *size, "--methods", METHODS, "--out", str(out), *options),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("runs/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_study_leaves_no_process(tmp_path):
    """Its workers hold its standard error open until they end."""
    process = start(tmp_path / "killed", "--workers", "2")
    process.kill()
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_in_worker_processes_exits_130_and_the_second_start_gives_the_same(tmp_path):
    out = tmp_path / "stopped"
    process = start(out)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    study = Toy(replace(Toy.default, seeds=1, steps=300, batch=4, test_size=8, record_every=100, methods=METHODS))
    run(study, out)
    run(study, tmp_path / "whole")
    assert (out / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
