"""Runs a study: trains the jobs without a result, then reports on all of them.

Each finished run is one file; starting again trains what is missing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import StudyReport
from gradnorm_studies.engine.processes import Processes
from gradnorm_studies.engine.progress import Board
from gradnorm_studies.engine.results import claim, read_result, result_path, write_manifest
from gradnorm_studies.engine.study import Interrupted, Job, Study
from gradnorm_studies.engine.training import carry_out


def reproduce(study: Study, out: Path, workers: int, console: Console, address: str = "") -> StudyReport:
    """Train a study's missing runs and write its folder.

    Args:
        study: The study.
        out: Output folder; created if missing, resumed if it holds this study with this config.
        workers: Worker processes; 0 runs in-process.
        console: Where progress and the tables go.
        address: Address of a Ray cluster, used instead of worker processes; "local" starts one on this machine.

    Returns:
        The report, already written to `out`.

    Raises:
        UsageError: If `out` holds something else.
        Interrupted: If the user stopped it.
    """
    jobs = study.jobs()
    claim(out, study)
    started = time.monotonic()
    missing = [job for job in jobs if not result_path(out, job).exists()]
    try:
        _execute(study, list(missing), len(jobs), out, workers, console, address)
    except KeyboardInterrupt as stopped:
        raise Interrupted from stopped
    metrics = Metrics({job.key: read_result(out, job)["rows"] for job in sorted(jobs, key=_reporting_order(jobs))})
    metrics.write_csv(out / "metrics.csv")
    figures = out / "figures"
    figures.mkdir(exist_ok=True)
    report = study.report(metrics, figures)
    write_manifest(out, len(missing), time.monotonic() - started)
    report.write(out)
    return report


def _reporting_order(jobs: Sequence[Job]) -> Callable[[Job], tuple[str, int, int]]:
    """Jobs by problem and seed, otherwise in the study's own order."""
    place = {job.key: i for i, job in enumerate(jobs)}
    return lambda job: (job.problem, job.seed, place[job.key])


class Pool(Protocol):
    """An executor of runs; leaving the context stops running ones."""

    @property
    def slots(self) -> float:
        """How many runs to submit at once."""
        ...

    def submit(self, job: Job) -> Future[Any]:
        """Starts a run."""
        ...

    def collect(self, job: Job, future: Future[Any]) -> None:
        """Make sure that a finished run's file is in the study's folder; re-raises the run's exception."""
        ...

    def reports(self) -> Iterator[tuple[Job, int]]:
        """The steps that runs have reached since the last call."""
        ...


def _execute(
    study: Study, missing: list[Job], total: int, out: Path, workers: int, console: Console, address: str
) -> None:
    if not missing:
        return
    with Board(console, study, total, total - len(missing)) as board:
        if address:
            from gradnorm_studies.engine.ray_executor import Cluster

            with Cluster(study, out, address, workers) as cluster:
                _execute_on(cluster, missing, out, board)
        elif workers:
            with Processes(study, out, workers) as processes:
                _execute_on(processes, missing, out, board)
        else:
            _execute_here(study, missing, out, board)


def _execute_on(pool: Pool, pending: list[Job], out: Path, board: Board) -> None:
    """Train all jobs, each as soon as its weights are known and the pool has room."""
    running: dict[Future[Any], Job] = {}
    while pending or running:
        while len(running) < pool.slots and (job := _take(pending, out)) is not None:
            running[pool.submit(job)] = job
        finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
        for job, step in pool.reports():
            if job in running.values():  # a report may come after its run's end
                board.show(job, step)
        for future in finished:
            pool.collect(running[future], future)
            board.finish(running.pop(future))


def _ready(job: Job, out: Path) -> Job | None:
    """The job with its weights filled in; `None` while it depends on an unfinished run."""
    if job.weights_from is None:
        return job
    if not result_path(out, job.weights_from).exists():
        return None
    averaged = read_result(out, job.weights_from)["averaged_weights"]
    return dataclasses.replace(job, weights=tuple(averaged), weights_from=None)


def _take(pending: list[Job], out: Path) -> Job | None:
    """Remove and return the first job that can be started."""
    for i, job in enumerate(pending):
        ready = _ready(job, out)
        if ready is not None:
            del pending[i]
            return ready
    return None


def _execute_here(study: Study, pending: list[Job], out: Path, board: Board) -> None:
    def watch(job: Job, step: int) -> bool:
        board.show(job, step)
        return False

    with _one_thread():
        while (job := _take(pending, out)) is not None:
            carry_out(study, job, out / "runs", partial(watch, job))
            board.finish(job)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread per process: these networks gain nothing from more, and sums are the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
