"""The detection study: its folder, resuming, and that its questions are not passed off as the paper's claims."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from gradnorm_studies.cli import build
from gradnorm_studies.engine.executor import reproduce
from gradnorm_studies.engine.pool import InProcess
from gradnorm_studies.vision.settings import DETECT_PRESETS as PRESETS
from gradnorm_studies.vision.study import Detect

COUNTS = {"train_images": 8, "validation_images": 3, "test_images": 5}
SMALL = replace(PRESETS["cpu"], steps=4, size=32, width=0.05, batch=4, record_every=2, seeds=1, **COUNTS)


@pytest.mark.parametrize("model", ["segnet", "fcn"])
def test_a_small_study_writes_its_folder(model, tmp_path):
    study = Detect(replace(SMALL, model=model, methods="single,equal,gradnorm,static"))
    report = reproduce(study, tmp_path / "out", InProcess, Console(file=io.StringIO()))
    ends, _, more, weights, asked = report.tables
    assert [row[0] for row in ends.rows] == ["gradnorm", "single", "equal", "static"]
    assert ends.header[2:-1] == ("mean error ↓", "Δm % ↑", "classification error % ↓", "100−AP50 % ↓", "100−mIoU % ↓")
    assert asked.header[0] == "we asked whether"
    assert more.header[1:] == ("100−AP %", "pixel error %")
    assert weights.header[1:] == ("classification", "detection", "segmentation")
    assert (tmp_path / "out" / "figures" / "pictures.png").exists()


def test_stopped_and_resumed_equals_uninterrupted_bitwise(tmp_path):
    study = Detect(replace(SMALL, steps=40, record_every=20))
    job = study.jobs()[0]
    whole, parts = tmp_path / "whole" / "runs", tmp_path / "parts" / "runs"
    whole.mkdir(parents=True)
    parts.mkdir(parents=True)
    assert study.train(job, whole, lambda step: False)
    assert not study.train(job, parts, lambda step: step == 20)
    assert study.train(job, parts, lambda step: False)
    name = f"{job.file_name}.json"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_there_is_no_paper_s_preset():
    done = CliRunner().invoke(build(), ["reproduce", "detect", "--preset", "paper"])
    assert done.exit_code == 2
    assert "choose one of cpu, gpu" in done.output
