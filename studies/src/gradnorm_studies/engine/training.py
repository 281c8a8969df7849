"""Training of one run, from its checkpoint, if there is one, to its result."""

from __future__ import annotations

import io
import time
from pathlib import Path

import torch

from gradnorm_studies.analysis.metrics import VALIDATION, Row
from gradnorm_studies.engine.experiment import Experiment, Job, Stop
from gradnorm_studies.engine.results import write_result, write_whole
from gradnorm_studies.engine.settings import Config

CHECKPOINT_SECONDS = 5.0
"""Time between checkpoints: the most work that a killed run loses. One checkpoint takes milliseconds."""

HEARTBEAT_STEPS = 20
"""Steps between two checks whether to stop."""


def train(experiment: Experiment, job: Job, config: Config, folder: Path, stop: Stop) -> bool:
    """Train from the run's checkpoint, if there is one.

    Args:
        experiment: The run, as built after seeding.
        job: Its job.
        config: The study's config.
        folder: Folder of the result, and of the checkpoint until then.
        stop: Called with the step every few steps; true ends the run early, with a checkpoint.

    Returns:
        Whether the run is finished.
    """
    checkpoint = folder / f"{job.file_name}.checkpoint"
    step, rows = _restore(experiment, checkpoint)
    saved = time.monotonic()
    for step in range(step, config.steps):  # noqa: B020 - continues from the restored step
        if step % HEARTBEAT_STEPS == 0:
            stopping = stop(step)
            if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save(experiment, checkpoint, step, rows)
                saved = time.monotonic()
            if stopping:
                return False
        advance(experiment, step, rows, record=step % config.record_every == 0)
    rows += evaluation(experiment, config.steps)
    write_result(folder, job, experiment.weighting, rows)
    checkpoint.unlink(missing_ok=True)
    return True


def advance(experiment: Experiment, step: int, rows: list[Row], record: bool) -> None:
    """One training step; if `record`, appends the evaluation to `rows`."""
    if record:
        rows += evaluation(experiment, step)
    losses = experiment.losses(step)
    loss = experiment.weighting(losses)
    experiment.optimizer.zero_grad()
    loss.backward()
    experiment.optimizer.step()
    experiment.schedule.step()
    experiment.weighting.step()
    if record:
        rows += [(step, f"loss/{task}", value) for task, value in zip(experiment.tasks, losses.tolist(), strict=True)]


def evaluation(experiment: Experiment, step: int) -> list[Row]:
    """Current metrics on test and validation data, and weights, as rows."""
    experiment.model.eval()
    with torch.no_grad():
        test, validation = experiment.evaluate("test"), experiment.evaluate("validation")
    experiment.model.train()
    weights = experiment.weighting.weights.tolist()
    measured = [*test.items(), *((VALIDATION + name, value) for name, value in validation.items())]
    measured += [(f"weight/{task}", w) for task, w in zip(experiment.tasks, weights, strict=True)]
    return [(step, name, value) for name, value in measured]


def _save(experiment: Experiment, path: Path, step: int, rows: list[Row]) -> None:
    parts = {name: part.state_dict() for name, part in experiment.stateful().items()}
    content = io.BytesIO()
    torch.save({"step": step, "rows": rows, **parts}, content)
    write_whole(path, content.getvalue())


def _restore(experiment: Experiment, path: Path) -> tuple[int, list[Row]]:
    if not path.exists():
        return 0, []
    state = torch.load(path, weights_only=True)
    for name, part in experiment.stateful().items():
        part.load_state_dict(state[name])
    return state["step"], state["rows"]
