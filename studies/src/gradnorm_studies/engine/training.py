"""Training of one run, from its checkpoint, if there is one, to its result."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradnorm_studies.analysis.metrics import Row
from gradnorm_studies.engine.results import write_result, write_whole
from gradnorm_studies.engine.study import Experiment, Job, Study

CHECKPOINT_SECONDS = 5.0
"""Time between checkpoints: the most work that a killed run loses. One checkpoint takes milliseconds."""

HEARTBEAT_STEPS = 20
"""Steps between two checks whether to stop."""

CHANGING = ("model", "weighting", "optimizer", "world")
"""The attributes of an experiment that change in training, and so are checkpointed."""


def train(study: Study, job: Job, folder: Path, stop: Callable[[int], bool]) -> bool:
    """Train `job` from its checkpoint, if there is one.

    Args:
        study: The study, which builds the experiment.
        job: The run, with its weights filled in.
        folder: Folder of the result, and of the checkpoint until then.
        stop: Called with the step every few steps; true ends the run early, with a checkpoint.

    Returns:
        Whether the run is finished.
    """
    torch.manual_seed(job.seed)
    experiment = study.experiment(job)
    checkpoint = folder / f"{job.file_name}.checkpoint"
    step, rows = _restore(experiment, checkpoint)
    saved = time.monotonic()
    for step in range(step, study.config.steps):  # noqa: B020 - continues from the restored step
        if step % HEARTBEAT_STEPS == 0:
            stopping = stop(step)
            if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save(experiment, checkpoint, step, rows)
                saved = time.monotonic()
            if stopping:
                return False
        advance(experiment, step, rows, record=step % study.config.record_every == 0)
    rows += evaluation(experiment, study.config.steps)
    write_result(folder, job, experiment.weighting, rows)
    checkpoint.unlink(missing_ok=True)
    return True


def carry_out(study: Study, job: Job, folder: Path, stop: Callable[[int], bool]) -> bool:
    """Train a job by the study's own `train`, if it has one; arguments and result are those of `train`."""
    return getattr(study, "train", partial(train, study))(job, folder, stop)


def advance(experiment: Experiment, step: int, rows: list[Row], record: bool) -> None:
    """One training step; if `record`, appends the evaluation to `rows`."""
    if record:
        rows += evaluation(experiment, step)
    losses = experiment.losses(step)
    loss = experiment.weighting(losses)
    experiment.optimizer.zero_grad()
    loss.backward()
    experiment.optimizer.step()
    experiment.weighting.step()
    if record:
        rows += [(step, f"loss/{task}", value) for task, value in zip(experiment.tasks, losses.tolist(), strict=True)]


def evaluation(experiment: Experiment, step: int) -> list[Row]:
    """Current test metrics and weights as rows."""
    experiment.model.eval()
    with torch.no_grad():
        metrics = experiment.evaluate()
    experiment.model.train()
    weights = experiment.weighting.weights.tolist()
    measured = [(step, name, value) for name, value in metrics.items()]
    return measured + [(step, f"weight/{task}", w) for task, w in zip(experiment.tasks, weights, strict=True)]


def _save(experiment: Experiment, path: Path, step: int, rows: list[Row]) -> None:
    state = {"step": step, "rows": rows, **{name: part.state_dict() for name, part in _changing(experiment)}}
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(path, content.getvalue())


def _restore(experiment: Experiment, path: Path) -> tuple[int, list[Row]]:
    if not path.exists():
        return 0, []
    state = torch.load(path, weights_only=True)
    for name, part in _changing(experiment):
        part.load_state_dict(state[name])
    return state["step"], state["rows"]


def _changing(experiment: Experiment) -> list[tuple[str, Any]]:
    return [(name, getattr(experiment, name)) for name in CHANGING if hasattr(experiment, name)]
