"""Executor on Ray: on this machine, or on a cluster by its address.

Each run is a Ray task. Its result file is returned as bytes and written here, so the folder is the same as without Ray,
and so is resuming: finished runs stay, whatever happens to the cluster. Runs that were running when a study is stopped
start again from step 0, since their checkpoints are on the machine where they ran.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
import torch

from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.engine.pool import Pool, Show
from gradnorm_studies.engine.results import result_path, write_whole
from gradnorm_studies.engine.study import Study

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
"""A cluster for one command on one machine reports no usage and needs no password file."""
STORE_BYTES = 100 * 2**20
"""Size of Ray's object store: results are small, and Ray's default is a third of the memory."""
GRACE_SECONDS = 5.0
"""Time that stopped runs get to clean up."""


class Cluster(Pool):
    """A cluster of Ray; connects when constructed."""

    slots = math.inf
    """Ray queues what does not fit; an autoscaling cluster needs to see the queue."""

    def __init__(self, study: Study, out: Path, show: Show, address: str, workers: int) -> None:
        self._study, self._out, self._show = study, out, show
        self._temporary = _connect(address, workers)
        self._reports: Any = ray.remote(num_cpus=0)(_Reports).remote()
        gpus = study.gpus if ray.cluster_resources().get("GPU") else 0
        self._train: Any = ray.remote(num_cpus=1, num_gpus=gpus)(_work)
        self._refs: dict[Future[bytes], Any] = {}

    def __exit__(self, *exception: Any) -> None:
        running = list(self._refs.values())
        for ref in running:
            ray.cancel(ref)
        if running:
            ray.wait(running, num_returns=len(running), timeout=GRACE_SECONDS)
        ray.shutdown()
        _remove(self._temporary)

    def submit(self, job: Job) -> Future[bytes]:
        """Submit a run to Ray."""
        ref = self._train.remote(self._study, job, self._reports)
        future = ref.future()
        self._refs[future] = ref
        return future

    def collect(self, job: Job, future: Future[bytes]) -> None:
        """Write a finished run's file; re-raises the run's exception."""
        del self._refs[future]
        write_whole(result_path(self._out, job), future.result())

    def poll(self) -> None:
        """Show the steps that runs have reached since the last call."""
        for job, step in ray.get(self._reports.take.remote()):
            self._show(job, step)


def _connect(address: str, workers: int) -> str | None:
    """Connect to a cluster, or start one on this machine, in a temporary folder that is returned."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    temporary = None
    if address == "local":
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        temporary = tempfile.mkdtemp(prefix="ray-")  # a path in the study's folder can be too long for Ray's sockets
        options |= {"num_cpus": max(1, workers), "num_gpus": torch.cuda.device_count(), "include_dashboard": False}
        options |= {"object_store_memory": STORE_BYTES, "_temp_dir": temporary}
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        _remove(temporary)
        raise UsageError(
            f"--address is {address!r}: Ray could not connect ({error}). "
            f"Give local for a cluster on this machine, auto, or the ray://HOST:PORT of one that runs."
        ) from None
    finally:
        signal.signal(signal.SIGTERM, terminated)  # Ray puts its own in place, which leaves without a word
    return temporary


def _remove(temporary: str | None) -> None:
    if temporary:
        shutil.rmtree(temporary, ignore_errors=True)  # a process on its way out may still write there


class _Reports:
    """An actor that collects the runs' steps for the progress bar."""

    def __init__(self) -> None:
        self._steps: dict[Job, int] = {}

    def put(self, job: Job, step: int) -> None:
        self._steps[job] = step

    def take(self) -> list[tuple[Job, int]]:
        taken, self._steps = list(self._steps.items()), {}
        return taken


def _work(study: Study, job: Job, reports: Any) -> bytes:
    """Train a job on a machine of the cluster; returns its result file."""
    torch.set_num_threads(1)

    def stop(step: int) -> bool:
        reports.put.remote(job, step)
        return False

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        result = result_path(out, job)
        result.parent.mkdir()
        study.train(job, result.parent, stop)
        return result.read_bytes()
