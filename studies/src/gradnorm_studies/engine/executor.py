"""What every study needs and none repeats: the loop, the folder, two processes, progress, and resuming.

A study says which runs there are (`jobs`), builds one (`experiment`), and explains all of them (`report`); everything
between is here. A run is a pure function of its job and the study's config: batches are drawn by step number, so a run
that was stopped at any step and goes on from its checkpoint gives the same bits as one that never stopped.

Each finished run is one file, written at once or not at all; a second start does what is missing.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from gradnorm_studies.analysis.metrics import Key, Metrics, Row
from gradnorm_studies.analysis.report import Report, Table
from gradnorm_studies.weightings import Weighting

CHECKPOINT_SECONDS = 5.0
"""The most work that a kill can cost; one checkpoint of these nets takes milliseconds."""

HEARTBEAT_STEPS = 20
"""Steps between two looks at whether to stop."""


CHANGING = ("model", "weighting", "optimizer", "world")
"""What changes while an experiment trains, so what a checkpoint holds."""


class UsageError(Exception):
    """What the user asked for cannot be done; the message says what to do instead."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it, and nothing is lost
    """The study was stopped; its finished runs and checkpoints are on disk."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run: which problem, by which method, from which seed."""

    problem: str
    method: str
    """A name of `methods.METHODS`."""
    seed: int
    lr: float
    """The network's learning rate."""
    label: str = ""
    """What tables call it; the method, unless several jobs share one."""
    weights: tuple[float, ...] | None = None
    """Fixed weights, one a task."""
    weights_from: Job | None = None
    """The run whose time-averaged weights this one takes as its fixed ones."""

    @property
    def key(self) -> Key:
        """Problem, label and seed: what tells this run from every other."""
        return self.problem, self.label or self.method, self.seed

    @property
    def file_name(self) -> str:
        """The key, safe as a file's name everywhere."""
        return re.sub(r"[^\w.+-]+", "-", "_".join(map(str, self.key)))


class Experiment(Protocol):
    """One job, built: everything that changes while it trains, and how to measure it.

    Where the data depend on what the network did before, as an agent's do, their state is one more attribute, `world`,
    with `state_dict()` and `load_state_dict()` over tensors and plain values.
    """

    tasks: tuple[str, ...]
    model: nn.Module
    weighting: Weighting
    optimizer: torch.optim.Optimizer

    def losses(self, step: int) -> Tensor:
        """The tasks' losses on the batch of this step, [T]; the batch depends on seed, step and `world` alone."""
        ...

    def evaluate(self) -> dict[str, float]:
        """The test metrics now."""
        ...


class Config(Protocol):
    """What every study's config has; the rest is its own."""

    @property
    def seeds(self) -> int:
        """How many seeds are reported."""
        ...

    @property
    def steps(self) -> int:
        """Training steps of a run."""
        ...

    @property
    def record_every(self) -> int:
        """Steps between two records."""
        ...


class Study(Protocol):
    """A study; a new one is one file. It must survive pickling: it is sent to worker processes.

    One that trains in another way than `train`'s loop has a method `train(job, folder, stop)` of its own.
    """

    @property
    def name(self) -> str:
        """What `gradnorm reproduce` calls it."""
        ...

    @property
    def config(self) -> Config:
        """A frozen dataclass of plain values."""
        ...

    def jobs(self) -> list[Job]:
        """All runs; those that others wait for, and the longest, first."""
        ...

    def experiment(self, job: Job) -> Experiment:
        """Builds a job, its weights filled in; called with the job's seed set."""
        ...

    def report(self, metrics: Metrics, figures: Path) -> Report:
        """Tables, verdicts and figures, drawn into the folder `figures`."""
        ...


def setting(
    default: Any,
    reason: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    choices: Sequence[str] = (),
) -> Any:
    """A field of a config: its default, the reason for it, which `--help` shows, and the values that make sense."""
    bounds = {"reason": reason, "least": least, "above": above, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=bounds)


def check(config: Any) -> None:
    """Raises a `UsageError` for the first setting that is out of its bounds."""
    for f in dataclasses.fields(config):
        value, option = getattr(config, f.name), f"--{f.name.replace('_', '-')}"
        if isinstance(value, str):
            if f.metadata["choices"] and value not in f.metadata["choices"]:
                raise UsageError(f"{option} is {value!r}: choose one of {', '.join(f.metadata['choices'])}.")
            continue
        least, above, below = (f.metadata[k] for k in ("least", "above", "below"))
        if not (value >= least and above < value < below):
            wanted = {"at least": least, "above": above, "below": below}
            bounds = " and ".join(f"{word} {bound:g}" for word, bound in wanted.items() if math.isfinite(bound))
            raise UsageError(f"{option} is {value}: give a number {bounds}.")


def command_line(name: str, config: Any, base: Any = None) -> str:
    """The command that makes a study: its name, and each setting that is not that of `base`, or the default."""
    base = base or type(config)()
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    changed = {name: value for name, value in values.items() if value != getattr(base, name)}
    return " ".join(["gradnorm reproduce", name, *(f"--{n.replace('_', '-')} {value}" for n, value in changed.items())])


def config_table(config: Any) -> Table:
    """A config with its reasons, for the end of a report."""
    fields = dataclasses.fields(config)
    rows = [(f.name, str(getattr(config, f.name)), f.metadata["reason"]) for f in fields]
    return Table("How it was done", ("setting", "value", "why"), rows)


# --------------------------------------------------------------------------------------------------------- one run


def train(study: Study, job: Job, folder: Path, stop: Callable[[int], bool]) -> bool:
    """Runs `job` from its checkpoint, if there is one, to its end.

    Args:
        study: Builds the experiment.
        job: The run; its weights must be known.
        folder: Where its result goes, and its checkpoint until then.
        stop: Called with the step now and then; true ends the run early, with a checkpoint.

    Returns:
        Whether the run is finished.
    """
    torch.manual_seed(job.seed)
    experiment = study.experiment(job)
    checkpoint = folder / f"{job.file_name}.checkpoint"
    step, rows = _restore(experiment, checkpoint)
    saved = time.monotonic()
    for step in range(step, study.config.steps):  # noqa: B020 - goes on from the restored step
        if step % HEARTBEAT_STEPS == 0:
            stopping = stop(step)
            if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save(experiment, checkpoint, step, rows)
                saved = time.monotonic()
            if stopping:
                return False
        _step(experiment, step, rows, record=step % study.config.record_every == 0)
    rows += measure(experiment, study.config.steps)
    write_result(folder, job, experiment.weighting, rows)
    checkpoint.unlink(missing_ok=True)
    return True


def write_result(folder: Path, job: Job, weighting: Weighting, rows: Sequence[Row], **more: Any) -> None:
    """A finished run, as `reproduce` looks for it; `more` is what the study's own report asks `read_result` for."""
    result = {"averaged_weights": weighting.averaged_weights().tolist(), "rows": rows, **more}
    write_whole(folder / f"{job.file_name}.json", json.dumps(result).encode())


def carry_out(study: Study, job: Job, folder: Path, stop: Callable[[int], bool]) -> bool:
    """Trains a job in the study's own way, where it has one; arguments and result are those of `train`."""
    return getattr(study, "train", partial(train, study))(job, folder, stop)


def _step(experiment: Experiment, step: int, rows: list[Row], record: bool) -> None:
    if record:
        rows += measure(experiment, step)
    losses = experiment.losses(step)
    loss = experiment.weighting(losses)
    experiment.optimizer.zero_grad()
    loss.backward()
    experiment.optimizer.step()
    experiment.weighting.step()
    if record:
        rows += [(step, f"loss/{task}", value) for task, value in zip(experiment.tasks, losses.tolist(), strict=True)]


def measure(experiment: Experiment, step: int) -> list[Row]:
    """The test metrics and the weights now."""
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


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file at once or not at all, so that no kill leaves half of one."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


# -------------------------------------------------------------------------------------------------------- all runs


def reproduce(study: Study, out: Path, workers: int, console: Console, address: str = "") -> Report:
    """Does what is missing of a study and writes its folder.

    Args:
        study: What to do.
        out: The folder; made if need be, resumed if it holds this study with this config.
        workers: Processes; 0 computes in this one.
        console: Where progress and the tables go.
        address: Of a Ray cluster, which computes in place of this machine's processes; "local" starts one here.

    Returns:
        The report, already written to `out`.

    Raises:
        UsageError: If `out` holds something else.
        Interrupted: If the user stopped it.
    """
    jobs = study.jobs()
    _claim(out, study)
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
    _manifest(out, len(missing), time.monotonic() - started)
    report.write(out)
    return report


def _reporting_order(jobs: Sequence[Job]) -> Callable[[Job], tuple[str, int, int]]:
    """By problem and seed; within, in the study's own order."""
    place = {job.key: i for i, job in enumerate(jobs)}
    return lambda job: (job.problem, job.seed, place[job.key])


def _claim(out: Path, study: Study) -> None:
    """Makes `out` this study's folder, or makes sure that it is."""
    config = {"study": study.name, **dataclasses.asdict(study.config)}  # pyright: ignore[reportArgumentType]
    config = json.loads(json.dumps(config))
    path = out / "config.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != config:
            raise UsageError(
                f"--out {out} holds a run with other settings ({_differences(found, config)}). "
                f"It is left as it is: give another --out, or the same settings to go on with it."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} exists and holds no run of gradnorm. It is left as it is: give another --out.")
    (out / "runs").mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_whole(path, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    return ", ".join(f"{name}: {found.get(name)} there, {wanted.get(name)} asked for" for name in names)


def _manifest(out: Path, computed: int, seconds: float) -> None:
    facts = {
        "gradnorm": _version("gradnorm"),
        "torch": torch.__version__,
        "torchjd": _version("torchjd"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "runs_computed_by_the_last_start": computed,
        "seconds_of_the_last_start": round(seconds, 1),
    }
    write_whole(out / "manifest.json", (json.dumps(facts, indent=2) + "\n").encode())


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def result_path(out: Path, job: Job) -> Path:
    """Where a finished run of the study in `out` lies."""
    return out / "runs" / f"{job.file_name}.json"


def read_result(out: Path, job: Job) -> dict[str, Any]:
    """What a finished run wrote."""
    return json.loads(result_path(out, job).read_text(encoding="utf-8"))


class Pool(Protocol):
    """Where runs are trained; leaving its context stops those in hand."""

    @property
    def slots(self) -> float:
        """How many runs to hand over at once."""
        ...

    def submit(self, job: Job) -> Future[Any]:
        """Starts a run."""
        ...

    def collect(self, job: Job, future: Future[Any]) -> None:
        """Sees to it that a finished run's file lies in the study's folder; raises what the run raised."""
        ...

    def reports(self) -> Iterator[tuple[Job, int]]:
        """Which runs have come to which step since the last look."""
        ...


def _execute(
    study: Study, missing: list[Job], total: int, out: Path, workers: int, console: Console, address: str
) -> None:
    if not missing:
        return
    with _Board(console, study, total, total - len(missing)) as board:
        if address:
            from gradnorm_studies.engine.ray_executor import Cluster

            with Cluster(study, out, address, workers) as cluster:
                _execute_on(cluster, missing, out, board)
        elif workers:
            with _Processes(study, out, workers) as processes:
                _execute_on(processes, missing, out, board)
        else:
            _execute_here(study, missing, out, board)


def _execute_on(pool: Pool, pending: list[Job], out: Path, board: _Board) -> None:
    """Trains all jobs, each as soon as its weights are known and the pool has room."""
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
    """The job with its weights filled in, or nothing if it still waits for another's."""
    if job.weights_from is None:
        return job
    if not result_path(out, job.weights_from).exists():
        return None
    averaged = read_result(out, job.weights_from)["averaged_weights"]
    return dataclasses.replace(job, weights=tuple(averaged), weights_from=None)


def _take(pending: list[Job], out: Path) -> Job | None:
    """Removes and returns the first job that can be started."""
    for i, job in enumerate(pending):
        ready = _ready(job, out)
        if ready is not None:
            del pending[i]
            return ready
    return None


def _execute_here(study: Study, pending: list[Job], out: Path, board: _Board) -> None:
    def watch(job: Job, step: int) -> bool:
        board.show(job, step)
        return False

    with _one_thread():
        while (job := _take(pending, out)) is not None:
            carry_out(study, job, out / "runs", partial(watch, job))
            board.finish(job)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread a process, everywhere: these nets gain nothing from more, and sums come out the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Board:
    """Live progress: one bar for the whole study, one for each run in hand."""

    def __init__(self, console: Console, study: Study, total: int, done: int) -> None:
        self._steps = study.config.steps
        self._bars: dict[Key, Any] = {}
        self._progress = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._total, self._done = total, done
        self._overall = self._progress.add_task(
            f"[bold]{study.name}", total=total * self._steps, completed=done * self._steps, note=""
        )
        self._note()

    def __enter__(self) -> _Board:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    def show(self, job: Job, step: int) -> None:
        """A run has reached `step`."""
        if job.key not in self._bars:
            problem, label, seed = job.key
            self._bars[job.key] = self._progress.add_task(
                f"  {problem} {label}, seed {seed}", total=self._steps, note=""
            )
        self._progress.update(self._bars[job.key], completed=step)
        self._sum()

    def finish(self, job: Job) -> None:
        """A run has ended."""
        if job.key in self._bars:
            self._progress.remove_task(self._bars.pop(job.key))
        self._done += 1
        self._sum()
        self._note()

    def _sum(self) -> None:
        running = sum(self._progress.tasks[i].completed for i in range(1, len(self._progress.tasks)))
        self._progress.update(self._overall, completed=self._done * self._steps + running)

    def _note(self) -> None:
        self._progress.update(self._overall, note=f"{self._done} of {self._total} runs")


class _Processes:
    """A pool of processes that train one job at a time each and stop, with a checkpoint, when told to."""

    def __init__(self, study: Study, out: Path, workers: int) -> None:
        self._study, self._folder, self.slots = study, out / "runs", workers
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._reports = context.SimpleQueue()
        self._executor = ProcessPoolExecutor(workers, context, _start_worker, (self._stop, self._reports))

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, job: Job) -> Future[bool]:
        return self._executor.submit(_work, self._study, job, self._folder)

    def collect(self, job: Job, future: Future[bool]) -> None:
        future.result()

    def reports(self) -> Iterator[tuple[Job, int]]:
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
