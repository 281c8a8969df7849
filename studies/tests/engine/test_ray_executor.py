"""On Ray, runs give the same files as in one process; stopping keeps those that are finished."""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from commands import command

pytest.importorskip("ray")

SIZE = ["--seeds", "1", "--batch", "8", "--test-size", "16", "--methods", "gradnorm,equal,static"]


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.suffix in {".json", ".csv"}
    }


def without_manifest(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(out).items() if name != "manifest.json"}


def test_where_there_is_no_cluster_it_says_what_to_give_instead(tmp_path, monkeypatch):
    from gradnorm_studies.engine.errors import UsageError
    from gradnorm_studies.engine.ray_executor import _connect

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UsageError, match=r"(?s)--address is 'auto'.*Give local"):
        _connect("auto", 1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_cluster_that_does_not_start_leaves_no_folder(tmp_path, monkeypatch):
    from gradnorm_studies.engine.errors import UsageError
    from gradnorm_studies.engine.ray_executor import _connect

    deep = tmp_path / ("d" * 100)  # too long for a socket's path
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, os.environ.get(name, "0" if name.endswith("ENABLED") else "disabled"))
    with pytest.raises(UsageError, match=r"(?s)--address is 'local'.*107"):
        _connect("local", 1)
    assert not list(deep.iterdir())


@pytest.mark.slow
def test_the_files_are_those_of_one_process_and_nothing_is_left_behind(tmp_path):
    size = ["grid", "--on", "toy", "--weightings", "4", "--steps", "4", "--record-every", "2"]
    with tempfile.TemporaryDirectory() as temporary:  # not pytest's, whose path is too long for sockets
        for out, how in (("ray", ["--address", "local"]), ("here", ["--workers", "0"])):
            environment = {**os.environ, "TMPDIR": temporary}
            subprocess.run(command(*size, *how, "--out", str(tmp_path / out)), check=True, env=environment, timeout=300)
        assert not [path for path in Path(temporary).iterdir() if path.name.startswith("ray-")]
    assert without_manifest(tmp_path / "ray") == without_manifest(tmp_path / "here")
    assert (tmp_path / "ray" / "table.md").read_bytes() == (tmp_path / "here" / "table.md").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_keeps_the_finished_runs_and_the_second_start_does_the_rest(tmp_path):
    out = tmp_path / "stopped"
    study = command("toy", *SIZE, "--steps", "300", "--record-every", "100", "--address", "local", "--out", str(out))
    process = subprocess.Popen(study, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(out.glob("runs/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*.json")}
    assert 0 < len(finished) < 11
    subprocess.run([*study[:-4], "--workers", "0", "--out", str(out)], check=True)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(list(out.glob("runs/*.json"))) == 11
