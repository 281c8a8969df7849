"""The vision study: jobs, presets, training by Lightning that is stopped and resumed, several processes, NYUv2."""

import io
import json
import math
import multiprocessing
import pickle
import signal
import time
from dataclasses import replace

import psutil
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from gradnorm_studies.analysis.metrics import VALIDATION
from gradnorm_studies.cli import build
from gradnorm_studies.engine.errors import Interrupted, UsageError
from gradnorm_studies.engine.executor import reproduce
from gradnorm_studies.engine.pool import InProcess
from gradnorm_studies.engine.settings import recorded
from gradnorm_studies.vision.loading import load
from gradnorm_studies.vision.module import TOGETHER_STEPS, VisionModule
from gradnorm_studies.vision.settings import VISION_PRESETS as PRESETS
from gradnorm_studies.vision.study import Detect, Vision

COUNTS = {"train_images": 8, "validation_images": 3, "test_images": 4}
SMALL = replace(PRESETS["cpu"], steps=6, size=32, width=0.05, batch=4, record_every=3, seeds=1, **COUNTS)


def unstopped(step):
    return False


def job_of(study, method):
    return next(job for job in study.jobs() if job.method == method)


def small(**changes):
    return Vision(replace(SMALL, **changes))


def reproduced(study, out):
    return reproduce(study, out, InProcess, Console(file=io.StringIO()))


@pytest.mark.parametrize("method", ["gradnorm", "dwa", "uncertainty"])
def test_stopped_and_resumed_equals_uninterrupted_bitwise(method, tmp_path):
    study = small(steps=60, record_every=30)
    job = job_of(study, method)
    whole, parts = tmp_path / "whole" / "runs", tmp_path / "parts" / "runs"
    whole.mkdir(parents=True)
    parts.mkdir(parents=True)
    assert study.train(job, whole, unstopped)
    assert not study.train(job, parts, lambda step: step == 20)
    assert [path.suffix for path in parts.iterdir()] == [".checkpoint"]
    assert not study.train(job, parts, lambda step: step == 40)
    assert study.train(job, parts, unstopped)
    name = f"{job.file_name}.json"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert [path.name for path in parts.iterdir()] == [name]


@pytest.mark.parametrize("tasks", ["seg", "kpts"])
@pytest.mark.parametrize("model", ["segnet", "fcn"])
def test_a_small_study_writes_its_folder(tasks, model, tmp_path):
    study = small(tasks=tasks, model=model, methods="single,equal,gradnorm,static")
    report = reproduced(study, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "config.json",
        "metrics.csv",
        "table.md",
        "report.html",
        "figures",
        "runs",
        "logs",
        "manifest.json",
    }
    ends, *_ = report.tables
    assert [row[0] for row in ends.rows] == ["gradnorm", "single", "equal", "static"]
    assert ends.rows[1][ends.header.index("Δm % ↑")] == "0"  # of the reference
    assert "--preset" not in report.command
    assert f"--model {model}" in report.command or model == "segnet"
    logs = list((tmp_path / "out" / "logs" / "csv").rglob("metrics.csv"))
    assert len(logs) == 4
    events = list((tmp_path / "out" / "logs" / "tensorboard").rglob("events*"))
    assert len(events) == 4


def test_the_methods_share_everything_but_the_last_layer_and_w_is_what_precedes_it():
    study = small()
    scenes = study.experiment(job_of(study, "gradnorm"))
    balancer = scenes.weighting.balancer
    scenes.weighting(scenes.losses(0)).backward()
    (network,) = scenes.model
    assert balancer.shared[0] is network.last_shared.weight
    assert len(study.experiment(job_of(study, "single")).model) == 3


def test_both_splits_are_evaluated_and_the_test_loss_is_recorded(tmp_path):
    study = small(methods="equal")
    reproduced(study, tmp_path / "out")
    (run,) = (tmp_path / "out" / "runs").glob("*.json")
    names = {name for _, name, _ in json.loads(run.read_text())["rows"]}
    metrics = {quantity.name for each in study.image_tasks.values() for quantity in each.quantities} | {"mean error"}
    expected = metrics | {VALIDATION + name for name in metrics}
    for task in ("segmentation", "depth", "normals"):
        expected |= {f"weight/{task}", f"loss/{task}", f"test loss/{task}"}
    assert names == expected


DETECT = Detect(replace(Detect.default, steps=6, size=32, width=0.05, batch=4, record_every=3, seeds=1, **COUNTS))


@pytest.mark.parametrize("study", [small(), DETECT], ids=["vision", "detect"])
def test_a_network_that_diverged_has_no_figures(study):
    run = study.experiment(job_of(study, "equal"))
    torch.nn.init.constant_(next(run.model[0].heads["segmentation"].parameters()), float("nan"))
    run.eval()
    with torch.no_grad():
        found = run.evaluate("validation")
    lost = {name for name, value in found.items() if math.isnan(value)}
    assert lost == {"mean error", *(quantity.name for quantity in study.image_tasks["segmentation"].quantities)}


def test_the_mean_of_losses_over_test_images_is_recorded():
    study = small(test_images=9, batch=2)  # eight images at once
    run = study.experiment(job_of(study, "equal"))
    run.eval()
    with torch.no_grad():
        found = run.evaluate("test")
        truth = load(study.images, "test")
        parts = [truth.map(lambda values, part=part: values[part]) for part in (slice(0, 8), slice(8, 9))]
        losses = torch.stack([run._losses(run(part.image), part) for part in parts])
    expected = (losses * torch.tensor([[8.0], [1.0]])).sum(0) / 9
    torch.testing.assert_close(torch.tensor([found[f"test loss/{task}"] for task in run.tasks]), expected)


def test_images_of_the_splits_are_of_different_rooms():
    images = small().images
    train, validation, test = (load(images, split).image for split in ("train", "validation", "test"))
    assert [len(part) for part in (train, validation, test)] == [8, 3, 4]
    every = torch.cat([train, validation, test]).flatten(1)
    assert (torch.cdist(every, every) + torch.eye(len(every)) > 0.5).all()


def test_the_learning_rate_decays_and_the_weightings_own_does_not(tmp_path, monkeypatch):
    seen = []
    step = VisionModule.optimizer_step

    def watched(run, *args, **kwargs):
        seen.append([group["lr"] for group in run.optimizer.param_groups])
        step(run, *args, **kwargs)

    monkeypatch.setattr(VisionModule, "optimizer_step", watched)
    study = small(steps=10, lr=0.01, record_every=10, methods="uncertainty")
    study.train(study.jobs()[0], tmp_path, unstopped)
    assert [own for _, own in seen] == [0.025] * 10
    expected = [0.01 * 0.2 ** (step // 3) for step in range(10)]
    assert [rate for rate, _ in seen] == pytest.approx(expected)


def test_a_study_can_be_sent_to_other_processes():
    study = pickle.loads(pickle.dumps(small(methods="equal")))
    assert study.config == small(methods="equal").config
    assert study.image_tasks == small().image_tasks


def test_rates_are_the_presets_and_a_width_has_rates_of_its_own():
    assert small().lr(small().problems[0], "equal") == 1e-3
    assert Vision(replace(PRESETS["paper"])).lr("rooms+seg segnet", "equal") == 2e-5
    assert Vision(PRESETS["gpu"]).default_lr == 2e-4
    assert small().problems == ("sparse rooms+seg segnet ×0.05",)
    assert Vision(PRESETS["paper"]).problems == ("rooms+seg segnet",)


def test_batches_are_those_of_the_seed_and_step():
    study = small()
    one, other = (study.experiment(job_of(study, method)) for method in ("gradnorm", "equal"))
    assert torch.equal(one._batch(3).image, other._batch(3).image)
    assert not torch.equal(one._batch(3).image, one._batch(4).image)
    changed = Vision(replace(SMALL, seeds=2))
    second = changed.experiment(next(job for job in changed.jobs() if job.seed == 1))
    assert not torch.equal(one._batch(3).image, second._batch(3).image)


def test_processes_share_the_batch_that_one_would_have(monkeypatch):
    whole, part = (small(batch=batch) for batch in (8, 4))
    expected = whole.experiment(job_of(whole, "equal"))._batch(3).image
    one = part.experiment(job_of(part, "equal"))
    found = []
    for rank in range(2):
        monkeypatch.setattr(VisionModule, "_place", (rank, 2))
        found.append(one._batch(3).image)
    assert torch.equal(torch.cat(found), expected)


@pytest.mark.parametrize(
    ("methods", "message"),
    [("gradnorm,fairness", r"'fairness'.*choose from"), ("equal,static", "gradnorm's averages: add it")],
)
def test_methods_that_cannot_be_are_named(methods, message):
    with pytest.raises(UsageError, match=message):
        small(methods=methods).jobs()


def test_presets_are_changed_by_what_is_given(tmp_path):
    app = build()
    result = CliRunner().invoke(app, ["reproduce", "vision", "--preset", "huge"])
    assert result.exit_code == 2
    assert "choose one of cpu, nyuv2, gpu, paper" in result.output
    given = {
        f"--{name.replace('_', '-')}": value
        for name, value in vars(SMALL).items()
        if value != getattr(PRESETS["cpu"], name)
    }
    arguments = [str(word) for pair in given.items() for word in pair]
    out = str(tmp_path / "out")
    command = ["reproduce", "vision", *arguments, "--methods", "equal", "--workers", "0", "--out", out]
    assert CliRunner().invoke(app, command).exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    rates = {"learning_rates": {problem: {"equal": 1e-3} for problem in Vision(SMALL).problems}}
    assert config == {"study": "vision", **recorded(replace(SMALL, methods="equal")), **rates}


def test_nyuv2_that_is_not_there_says_what_to_get(tmp_path):
    study = small(data="nyuv2", root=str(tmp_path))
    with pytest.raises(UsageError, match="nyu_depth_v2_labeled"):
        study.train(study.jobs()[0], tmp_path, unstopped)


OF_TWO = {"train_images": 795, "validation_images": 1}
"""The tests' NYUv2 has two images to train on."""


@pytest.mark.parametrize("form", ["official", "folders", "prepared"])
def test_nyuv2_trains_from_either_form(form, request, tmp_path):
    study = small(data="nyuv2", root=str(request.getfixturevalue(form)), methods="equal,gradnorm", **OF_TWO)
    report = reproduced(study, tmp_path / "out")
    assert [row[0] for row in report.tables[0].rows] == ["gradnorm", "equal"]
    assert "--data nyuv2 --root" in report.command
    assert (tmp_path / "out" / "figures" / "pictures.png").exists()


def test_no_more_images_of_nyuv2_are_told_than_there_are(prepared):
    study = Vision(replace(PRESETS["gpu"], data="nyuv2", root=str(prepared)))
    assert "595 training, 200 validation and 654 test images" in study.lead()


def test_ctrl_c_in_this_process_stops_as_everywhere(tmp_path, monkeypatch):
    def interrupt(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(VisionModule, "losses", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(Interrupted):
            reproduced(small(methods="equal"), tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, handler)


def test_views_of_nyuv2_keep_their_shape_in_their_preset(prepared, tmp_path):
    assert PRESETS["nyuv2"].data == "nyuv2"
    changes = {name: getattr(SMALL, name) for name in ("steps", "record_every", "seeds", "batch", "width")}
    config = replace(PRESETS["nyuv2"], root=str(prepared), methods="equal,gradnorm", **changes, **OF_TWO)
    study = Vision(config)
    run = study.experiment(job_of(study, "equal"))
    assert {task: out.shape[2:] for task, out in run(run._batch(0).image).items()} == dict.fromkeys(run.tasks, (24, 32))
    report = reproduced(study, tmp_path / "out")
    assert "96×128 pixels in" in report.lead[0]
    assert "--preset nyuv2" in report.command
    assert (tmp_path / "out" / "figures" / "pictures.png").exists()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"image_width": 64}, "--image-width 64: rooms are square"),
        ({"root": "nyuv2.npz"}, "--root nyuv2.npz: rooms are rendered.*--data nyuv2"),
        ({"data": "nyuv2"}, "--data nyuv2 needs --root"),
        ({"data": "nyuv2", "root": "nowhere"}, "NYUv2 is not in nowhere"),
        ({"data": "nyuv2", "root": "nowhere", "tasks": "kpts"}, r"were never published.*--data rooms"),
    ],
)
def test_settings_that_do_not_go_together_are_named_with_the_remedy(settings, found):
    with pytest.raises(UsageError, match=found):
        small(**settings).jobs()


def test_what_cannot_be_is_refused_before_anything_is_read_or_written(tmp_path):
    result = CliRunner().invoke(build(), ["reproduce", "vision", "--methods", "static", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "--methods has static" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tasks", ["seg", "kpts"])
def test_a_run_can_be_sent_to_the_processes_of_ddp(tasks):
    study = small(tasks=tasks)
    for job in study.jobs():
        if job.weights_from is None:
            assert pickle.loads(pickle.dumps(study.experiment(job))).job == job


def train_together(steps, folder):
    """In two processes, each on half of the batch."""
    study = small(devices=2, methods="gradnorm", steps=steps, record_every=steps // 2)
    study.train(study.jobs()[0], folder, unstopped)


@pytest.mark.slow
def test_two_processes_write_one_run(tmp_path):
    train_together(6, tmp_path)
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [step for step, name, _ in rows if name == "mean error"] == [0, 3, 6]


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on(tmp_path):
    """From the last checkpoint, to the same bits."""
    whole, parts = tmp_path / "whole" / "runs", tmp_path / "parts" / "runs"
    whole.mkdir(parents=True)
    parts.mkdir(parents=True)
    train_together(2 * TOGETHER_STEPS, whole)
    training = multiprocessing.get_context("spawn").Process(target=train_together, args=(2 * TOGETHER_STEPS, parts))
    training.start()
    while not list(parts.glob("*.checkpoint")):
        assert training.is_alive()
        time.sleep(0.05)
    for process in [*psutil.Process(training.pid).children(recursive=True), psutil.Process(training.pid)]:
        process.kill()
    training.join()
    assert not list(parts.glob("*.json"))
    train_together(2 * TOGETHER_STEPS, parts)
    (expected,), (found,) = whole.iterdir(), parts.iterdir()
    assert found.read_bytes() == expected.read_bytes()
