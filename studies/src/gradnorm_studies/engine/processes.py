"""A study's runs in worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gradnorm_studies.engine.study import Job, Study
from gradnorm_studies.engine.training import carry_out


class Processes:
    """A pool of processes that train one job at a time each and stop, with a checkpoint, when told to."""

    def __init__(self, study: Study, out: Path, workers: int) -> None:
        self._study, self._folder, self.slots = study, out / "runs", workers
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._reports = context.SimpleQueue()
        self._executor = ProcessPoolExecutor(workers, context, _start_worker, (self._stop, self._reports))

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, job: Job) -> Future[bool]:
        """Hands a run to the next free process."""
        return self._executor.submit(_work, self._study, job, self._folder)

    def collect(self, job: Job, future: Future[bool]) -> None:
        """Raises what the run raised; its file lies in the folder."""
        future.result()

    def reports(self) -> Iterator[tuple[Job, int]]:
        """Which runs have come how far since the last look."""
        while not self._reports.empty():
            yield self._reports.get()


_worker: tuple[Any, Any] | None = None


def _start_worker(stop: Any, reports: Any) -> None:
    """Readies a worker process. Ctrl-C reaches it too, but stopping is its parent's decision."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _worker = stop, reports


def _work(study: Study, job: Job, folder: Path) -> bool:
    assert _worker is not None
    event, reports = _worker
    parent = multiprocessing.parent_process()

    def stop(step: int) -> bool:
        reports.put((job, step))
        return event.is_set() or (parent is not None and not parent.is_alive())

    return carry_out(study, job, folder, stop)
