"""Loggers take `log_dict()` as it is, by hand and through the Lightning callback: what they wrote is read back."""

import struct

import mlflow
import pytest
import torch
import wandb
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from wandb.proto import wandb_internal_pb2

from gradnorm._history import FIELDS

from ..unit.networks import train, trained
from .test_lightning import STEPS, Net, loader, trainer_of

MEASURED = [f"gradnorm/{field}/{task}" for field in FIELDS for task in "abc"]


@pytest.fixture(autouse=True)
def contained(tmp_path, monkeypatch):
    """No network, no account, and no file outside the test's folder, which is also the working folder."""
    monkeypatch.chdir(tmp_path)
    folders = {f"WANDB_{name}_DIR": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    telemetry = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    home = tmp_path / "home"
    home.mkdir()
    for name, value in (folders | settings | telemetry | {"HOME": str(home)}).items():
        monkeypatch.setenv(name, value)
    yield
    wandb.teardown()


def logged_steps(log, steps=3):
    """Trains, logging each step by `log(figures, step)`; returns what was to be logged."""
    net, balancer = trained(steps=1)
    expected = []
    for step in range(steps):
        train(net, balancer, 1, first=1 + step)
        log(balancer.log_dict(), step)
        expected.append(balancer.log_dict())
    assert set(MEASURED) < set(expected[0])
    assert len({figures["gradnorm/weight/a"] for figures in expected}) == steps
    return expected


def fit(logger):
    """Trains by Lightning; what the last step's figures were, and the steps at which it logs."""
    net = Net()
    trainer_of(logger=logger, log_every_n_steps=2).fit(net, loader())
    return net.balancer.log_dict(), list(range(1, STEPS, 2))


# -------------------------------------------------------------------------------------------------- TensorBoard


def scalars(folder):
    """{name: [(step, value), …]} of the event files."""
    events = EventAccumulator(str(folder)).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard(tmp_path):
    with SummaryWriter(str(tmp_path / "runs")) as writer:

        def log(figures, step):
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

        expected = logged_steps(log)
    found = scalars(tmp_path / "runs")
    assert set(found) == set(expected[0])
    for name, points in found.items():
        # TensorBoard keeps float32.
        torch.testing.assert_close(torch.tensor(points), torch.tensor([(i, e[name]) for i, e in enumerate(expected)]))


def test_tensorboard_through_lightning(tmp_path):
    last, steps = fit(TensorBoardLogger(tmp_path, "net", version="one"))
    found = scalars(tmp_path / "net" / "one")
    assert set(last) <= set(found)
    for name, value in last.items():
        assert [step for step, _ in found[name]] == steps
        assert found[name][-1][1] == pytest.approx(value, rel=1e-6)


# ------------------------------------------------------------------------------------------------------------ W&B


def history(folder):
    """The logged rows of the one offline run below `folder`."""
    wandb.teardown()  # another process writes the file: on a busy machine it may not have done so yet
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows = []
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): float(item.value_json) for item in items})
    return rows


def records(data, block=32768):
    """The payloads of a log in LevelDB's format: blocks of chunks with a header of checksum, length and kind."""
    position, parts = 7, []
    while position < len(data):
        if block - position % block < 7:  # no header fits into the rest of this block
            position += block - position % block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def test_wandb(tmp_path):
    with wandb.init(project="gradnorm", dir=tmp_path) as run:
        expected = logged_steps(lambda figures, step: run.log(figures, step=step))
    found = history(tmp_path)
    assert len(found) == len(expected)
    for step, (row, figures) in enumerate(zip(found, expected, strict=True)):
        assert row["_step"] == step
        assert {name: row[name] for name in figures} == figures


def test_wandb_through_lightning(tmp_path):
    last, steps = fit(WandbLogger(project="gradnorm", save_dir=tmp_path))
    wandb.finish()
    found = [row for row in history(tmp_path) if "gradnorm/skipped" in row]
    assert [row["trainer/global_step"] for row in found] == steps
    assert {name: found[-1][name] for name in last} == last


# --------------------------------------------------------------------------------------------------------- MLflow


def metrics(store, name):
    """[(step, value), …] of the one run in the store."""
    client = mlflow.MlflowClient(store)
    experiments = [found.experiment_id for found in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


@pytest.fixture
def store(tmp_path):
    uri = (tmp_path / "mlruns").as_uri()
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(before)


def test_mlflow(store):
    def log(figures, step):
        mlflow.log_metrics(figures, step=step)

    with mlflow.start_run():
        expected = logged_steps(log)
    for name in expected[0]:
        found = metrics(store, name)
        assert found == [(step, figures[name]) for step, figures in enumerate(expected)]


def test_mlflow_through_lightning(store):
    last, steps = fit(MLFlowLogger("gradnorm", tracking_uri=store))
    for name, value in last.items():
        found = metrics(store, name)
        assert [step for step, _ in found] == steps
        assert found[-1][1] == value
