"""The command line says what it would do, and what to do instead."""

import dataclasses
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
import typer
from typer.testing import CliRunner

import gradnorm
from faces_files import write_official
from gradnorm import History, StepRecord
from gradnorm_studies import cli
from gradnorm_studies.studies import STUDIES


def invoke(*arguments: str):
    return CliRunner().invoke(cli.build(), list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


def test_the_version_is_that_of_both_packages():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.output == f"gradnorm {gradnorm.__version__}\n"
    assert gradnorm.__version__ == version("gradnorm") == version("gradnorm-studies")


def groups(command, path=()):
    """Every command and group of commands, as arguments."""
    yield path
    for name, sub in getattr(command, "commands", {}).items():
        yield from groups(sub, (*path, name))


@pytest.mark.parametrize("path", list(groups(typer.main.get_command(cli.build()))), ids=" ".join)
def test_h_is_help_everywhere(path):
    short, long = (invoke(*path, option) for option in ("-h", "--help"))
    assert short.exit_code == long.exit_code == 0
    assert short.output == long.output


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_help_says_what_every_setting_is_then_why_its_default(study):
    text = " ".join(invoke("reproduce", study.name, "--help").output.replace("│", " ").split())
    for field in dataclasses.fields(study.default):
        assert f"--{field.name.replace('_', '-')}" in text
        if not study.presets or field.name == study.chooser:
            assert f"[default: {getattr(study.default, field.name)}" in text
        assert " ".join((field.metadata["what"], field.metadata["why"]))[:60] in text


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("toys",), ("toys",)),
        (("toy", "--steps", "many"), ("--steps", "many")),
        (("toy", "--seeds", "0"), ("--seeds", "0")),
        (("toy", "--workers", "-1"), ("--workers", "-1")),
        (("toy", "--weight-lr", "0"), ("--weight-lr", "0")),
        (("toy", "--alpha", "-1"), ("--alpha", "-1")),
        (("toy", "--preactivation", "0"), ("--preactivation", "0")),
        (("toy", "--methods", "equal,equals"), ("--methods", "equals", "uncertainty")),
        (("toy", "--methods", "static"), ("--methods", "static", "gradnorm")),
        (("rl", "--discount", "1.5"), ("--discount", "1.5", "at most 1")),
        (("vision", "--size", "100"), ("--size", "100", "a multiple of 32")),
        (("vision", "--data", "nyuv2", "--root", "nowhere"), ("NYUv2 is not in nowhere", "does not exist")),
        (("alpha", "--on", "nothing"), ("--on", "nothing", "toy")),
        (("alpha", "--seeds", "0"), ("--seeds", "0")),
        (("grid", "--weightings", "1"), ("--weightings", "1")),
    ],
)
def test_bad_input_names_the_argument_and_what_was_found(arguments, found, tmp_path):
    result = invoke("reproduce", *arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert all(part in result.output for part in found)
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_an_error_of_one_sentence(tmp_path):
    (tmp_path / "x").write_text("x")
    result = invoke("reproduce", "toy", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "another --out" in result.output


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("gymnasium", ["rl", "--learning-starts", "1", "--eval-episodes", "1"], "rl"),
        ("gymnasium", ["alpha", "--on", "rl"], "rl"),
        ("ray", ["toy", "--address", "local"], "ray"),
    ],
)
def test_without_an_extra_it_says_what_to_install_and_the_commands_load(missing, arguments, extra, tmp_path):
    block = f"import sys; sys.modules.update({missing}=None)\nfrom gradnorm_studies.cli import main; main()"
    tiny = ["--seeds", "1", "--steps", "1", "--workers", "0"]
    command = [sys.executable, "-c", block, "reproduce", *arguments, *tiny, "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert f'pip install "gradnorm-studies[{extra}]"' in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", ["nyuv2", "faces"])
def test_what_is_missing_of_a_data_set_is_said_and_where_to_get_it(data, tmp_path):
    result = invoke("data", data, "--root", str(tmp_path / "nowhere"), "--check")
    assert result.exit_code == 2
    assert "nowhere" in result.output
    assert "Traceback" not in result.output
    result = invoke("data", data, "--root", str(tmp_path))
    assert result.exit_code == 2
    assert "--check" in result.output


def test_a_data_set_that_is_there_is_checked_and_prepared(tmp_path):
    root = write_official(tmp_path / "MTFL")
    assert invoke("data", "faces", "--root", str(root), "--check").exit_code == 0
    out = tmp_path / "faces.npz"
    result = invoke("data", "faces", "--root", str(root), "--out", str(out))
    assert result.exit_code == 0
    assert str(out) in result.output
    result = invoke("data", "faces", "--root", str(out), "--check")
    assert result.exit_code == 0
    assert "missing" not in result.output


def test_preparing_from_what_is_not_there_writes_nothing(tmp_path):
    out = tmp_path / "out.npz"
    for data in ("nyuv2", "faces"):
        result = invoke("data", data, "--root", str(tmp_path), "--out", str(out))
        assert result.exit_code == 2
        assert "Error: " in result.output
        assert not out.exists()


def test_a_picture_of_rooms_that_cannot_be_written_is_an_error_of_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    result = invoke("data", "rooms", "--show", "--n", "1", "--out", str(tmp_path / "file" / "sheet.png"))
    assert result.exit_code == 2
    assert "cannot be written" in result.output
    assert "sheet.png" in result.output.replace("\n", "")


@pytest.fixture
def saved(tmp_path):
    """A history of two steps, saved."""
    history = History(["a", "b"], capacity=2)
    for step in range(2):
        history.append(StepRecord(step, torch.ones(2, 5) + step, None))
    path = tmp_path / "history.csv"
    history.save(path)
    return path


@pytest.mark.parametrize(("name", "start"), [("history.png", b"\x89PNG"), ("other.svg", b"<?xml")])
def test_plot_draws_a_saved_history_beside_it_or_where_it_is_told(name, start, saved):
    out = [] if name == "history.png" else ["--out", str(saved.with_name(name))]
    result = invoke("plot", str(saved), *out)
    assert result.exit_code == 0, result.output
    assert result.output.replace("\n", "") == str(saved.with_name(name))
    assert saved.with_name(name).read_bytes().startswith(start)


def test_what_cannot_be_plotted_is_explained(saved, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    for arguments, found in [
        (["nothing.csv"], "nothing.csv is no file"),
        (["."], ". is no file"),
        ([str(tmp_path / "empty.csv")], "holds no step"),
        ([str(tmp_path / "table.csv")], "columns step, task"),
        ([str(saved), "--out", "x.gif"], ".png, .svg, .pdf"),
        ([str(saved), "--out", str(tmp_path / "none" / "x.png")], "cannot be written"),
    ]:
        result = invoke("plot", *arguments)
        assert result.exit_code == 2
        assert found in " ".join(result.output.replace("│", " ").split())
        assert "Traceback" not in result.output


def test_signs_that_the_output_cannot_encode_stop_nothing(tmp_path):
    command = [sys.executable, "-c", "from gradnorm_studies.cli import main; main()", "reproduce", "toy", "--help"]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"toy" in done.stdout
