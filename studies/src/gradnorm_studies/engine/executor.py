"""Runs a study: trains the jobs without a result, then reports on all of them.

Each finished run is one file; starting again trains what is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import StudyReport
from gradnorm_studies.engine.errors import Interrupted
from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.engine.pool import OpenPool, Pool
from gradnorm_studies.engine.progress import Board, board
from gradnorm_studies.engine.results import Manifest, alone, claim, made, read_result, result_path, writing
from gradnorm_studies.engine.study import Study


def reproduce(study: Study, out: Path, open_pool: OpenPool, console: Console) -> StudyReport:
    """Train a study's missing runs and write its folder.

    Args:
        study: The study.
        out: Output folder; created if missing, resumed if it holds this study with this config.
        open_pool: Opens the pool that trains the runs.
        console: Where progress and the tables go.

    Returns:
        The report, already written to `out`.

    Raises:
        UsageError: If `out` holds something else, cannot be written, or another command trains there.
        Interrupted: If the user stopped it.
    """
    with writing(out):
        claim(out, study.name, study.recorded(), study.learning_rates())
        with alone(out):
            return _reproduce(study, out, open_pool, console)


def _reproduce(study: Study, out: Path, open_pool: OpenPool, console: Console) -> StudyReport:
    jobs = study.jobs()
    manifest = Manifest(out)
    missing = [job for job in jobs if not result_path(out, job).exists()]
    try:
        if missing:
            shown = board(console, study.name, study.config.steps, len(jobs), len(jobs) - len(missing))
            with shown, open_pool(study, out, shown.show) as pool:
                _execute(pool, list(missing), out, shown, manifest)
    except KeyboardInterrupt as stopped:
        raise Interrupted from stopped
    metrics = Metrics({job.key: read_result(out, job)["rows"] for job in sorted(jobs, key=_reporting_order(jobs))})
    metrics.write_csv(out / "metrics.csv")
    figures = out / "figures"
    report = dataclasses.replace(study.report(metrics, figures), made=made(manifest.write()))
    report.write(out)
    return report


def _reporting_order(jobs: Sequence[Job]) -> Callable[[Job], tuple[str, int, int]]:
    """Jobs by problem and seed, otherwise in the study's own order."""
    place = {job.key: i for i, job in enumerate(jobs)}
    return lambda job: (job.problem, job.seed, place[job.key])


def _execute(pool: Pool, pending: list[Job], out: Path, shown: Board, manifest: Manifest) -> None:
    """Train all jobs, each as soon as its weights are known and the pool has room."""
    running: dict[Future[Any], Job] = {}
    while pending or running:
        while len(running) < pool.slots and (job := _take(pending, out)) is not None:
            shown.start(job)
            running[pool.submit(job)] = job
        finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
        pool.poll()
        for future in finished:
            pool.collect(running[future], future)
            manifest.add()
            shown.finish(running.pop(future))


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
