"""Executor in worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.engine.pool import Pool, Show
from gradnorm_studies.engine.study import Study


class Processes(Pool):
    """A pool of processes, each training one job at a time; when told to stop they save a checkpoint."""

    def __init__(self, study: Study, out: Path, show: Show, workers: int) -> None:
        self._study, self._folder, self._show, self.slots = study, out / "runs", show, workers
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._reports = context.SimpleQueue()
        self._executor = ProcessPoolExecutor(workers, context, _start_worker, (self._stop, self._reports))

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, job: Job) -> Future[bool]:
        """Submit a run to the next free process."""
        return self._executor.submit(_work, self._study, job, self._folder)

    def poll(self) -> None:
        """Show the steps that runs have reached since the last call."""
        while not self._reports.empty():
            self._show(*self._reports.get())


_worker: tuple[Any, Any] | None = None
_training = threading.Lock()


def _start_worker(stop: Any, reports: Any) -> None:
    """Initialize a worker process. Ctrl-C reaches it too, but stopping is its parent's decision."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _worker = stop, reports
    threading.Thread(target=_end_with_parent, args=(stop,), daemon=True).start()


def _end_with_parent(stop: Any) -> None:
    """Ends this process after a killed parent, and after the checkpoint of its run: it would wait for jobs forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    stop.set()
    with _training:
        os._exit(1)


def _work(study: Study, job: Job, folder: Path) -> bool:
    assert _worker is not None
    event, reports = _worker

    def stop(step: int) -> bool:
        reports.put((job, step))
        return event.is_set()

    with _training:
        return study.train(job, folder, stop)
