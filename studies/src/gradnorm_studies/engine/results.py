"""A study's folder: its config, one file per finished run, a manifest.

Files are written atomically, so that starting again finds what is missing.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from gradnorm_studies.analysis.metrics import Row
from gradnorm_studies.engine.errors import UsageError
from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.weightings import Weighting

WRITTEN_LAST = ("metrics.csv", "table.md", "report.html", "manifest.json")
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors that name no file: the disk, or the user's share of it."""

LOCK = "lock"
"""The file that is locked while a command trains in a folder; the system unlocks it however that ends."""

MOST_NAMED = 3
"""Settings that an error about a folder names."""

SEPARATOR = "; "
"""Between the values of a fact where starts of a study differ."""


@contextmanager
def writing(out: Path, option: str = "--out") -> Iterator[None]:
    """Turns a failure to write to `out`, or to a file in it, into a `UsageError`; other files' errors pass."""
    try:
        yield
    except OSError as error:
        path, is_full = error.filename, error.errno in FULL
        path = Path(path) if isinstance(path, (str, os.PathLike)) else None
        is_ours = path is not None and (out == path or out in path.parents or path in out.parents)
        if not is_ours and not is_full:
            raise
        remedy = "Make room on the disk" if is_full else "Make it writable, or close the program that has it open"
        raise UsageError(
            f"{option}: {path or out} cannot be written ({error.strerror or error}). {remedy}, and run the same "
            f"command again: what is finished is kept. Or give another {option}."
        ) from None


def claim(out: Path, name: str, settings: Mapping[str, Any], rates: Mapping[str, Mapping[str, float]]) -> None:
    """Create `out` as the folder of the study `name`, or check that it is, with these settings, and can be written.

    Args:
        out: The folder.
        name: The study.
        settings: Its settings, by name.
        rates: The learning rates of its runs, by problem and label, which a later search may change.

    Raises:
        UsageError: It holds something else, or the same study with other settings or rates.
    """
    config = json.loads(json.dumps({"study": name, **settings, "learning_rates": rates}))
    path, runs = out / "config.json", out / "runs"
    has_runs = runs.is_dir() and any(runs.iterdir())
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != config and has_runs:
            raise UsageError(
                f"--out {out} holds a run with other settings ({_differences(found, config)}). "
                f"It is left as it is: give another --out, or the same settings to resume it."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} exists and holds no run of gradnorm. It is left as it is: give another --out.")
    runs.mkdir(parents=True, exist_ok=True)
    if not has_runs:
        write_whole(path, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
    _try_writing(out)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps other commands out of a study's folder, where they would train the same runs.

    Raises:
        UsageError: Another one is in it.
    """
    try:
        held = FileLock(out / LOCK).acquire(blocking=False)
    except Timeout:
        raise UsageError(
            f"--out {out} is in use: another command trains there. Wait until it ends, or stop it; or give another "
            f"--out."
        ) from None
    with held:
        yield


def _try_writing(out: Path) -> None:
    """Raise now what would be raised only after hours of training."""
    (out / "figures").mkdir(exist_ok=True)
    for folder in (out, out / "runs", out / "figures"):
        probe = folder / f"probe.{os.getpid()}"
        write_whole(probe, b"")
        probe.unlink()
    for path in (out / name for name in WRITTEN_LAST):
        if path.exists():
            path.open("ab").close()


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    found, wanted = _flat(found), _flat(wanted)
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    shown = [f"{name}: {found.get(name)} there, {wanted.get(name)} asked for" for name in names[:MOST_NAMED]]
    more = [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return ", ".join([*shown, *more])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """With names such as `learning_rates T=2 equal` for what lies deeper."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name} ") if inner else {f"{prefix}{name}": value}
    return flat


class Manifest:
    """When, where and by what code the runs were trained: `manifest.json`, written after each of them.

    Facts of several starts stand together, runs and wall times are added up; a start that trains nothing changes
    none of it, so that a report tells of its runs and not of when it was written.

    Args:
        out: The study's folder.
    """

    def __init__(self, out: Path) -> None:
        self._path, self._started = out / "manifest.json", time.monotonic()
        self._earlier = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self._now = _facts()
        self._computed, self._seconds = 0, 0.0

    def add(self) -> None:
        """A run is finished."""
        self._computed += 1
        self._seconds = time.monotonic() - self._started
        self.write()

    def write(self) -> dict[str, Any]:
        """Write the file; returns its content."""
        facts: dict[str, Any] = {name: self._joined(name) for name in self._now}
        facts["seconds"] = round(self._earlier.get("seconds", 0.0) + self._seconds, 3)
        facts["runs"] = self._earlier.get("runs", 0) + self._computed
        write_whole(self._path, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
        return facts

    def _joined(self, name: str) -> str:
        """The values of a fact in the starts that trained a run, in order."""
        known = [value for value in self._earlier.get(name, "").split(SEPARATOR) if value]
        if self._computed and self._now[name] not in known:
            known.append(self._now[name])
        return SEPARATOR.join(known)


def _facts() -> dict[str, str]:
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "gradnorm": _version("gradnorm"),
        "torch": torch.__version__,
        "torchjd": _version("torchjd"),
        "python": platform.python_version(),
        "platform": _machine(),
    }


def made(facts: dict[str, Any]) -> str:
    """A manifest in one line, for the report; what it does not know is left out.

    Examples:
        >>> made({"date": "2026-01-31", "seconds": 754.0, "commit": "0123abc", "platform": "Linux, 2 CPUs"})
        'Trained 2026-01-31 in 12 min 34 s; commit 0123abc; Linux, 2 CPUs.'
    """
    named = [("commit", "commit "), ("platform", ""), ("torch", "torch "), ("python", "Python ")]
    facts = {name: str(value).replace(SEPARATOR, " and ") for name, value in facts.items()}
    parts = [f"{prefix}{facts[name]}" for name, prefix in named if facts.get(name)]
    when = f"Trained {facts['date']} in {_duration(float(facts['seconds']))}" if facts.get("date") else "Trained"
    return "; ".join([when, *parts]) + "." if facts.get("date") or parts else ""


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def _machine() -> str:
    parts = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} CPUs"]
    return ", ".join([*parts, torch.cuda.get_device_name()] if torch.cuda.is_available() else parts)


def _commit() -> str:
    """The commit of the checkout that this code lies in, with a mark if it was changed; empty outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def result_path(out: Path, job: Job) -> Path:
    """Path of a finished run of the study in `out`."""
    return out / "runs" / f"{job.file_name}.json"


def read_result(out: Path, job: Job) -> dict[str, Any]:
    """The content of a finished run's file."""
    return json.loads(result_path(out, job).read_text(encoding="utf-8"))


def write_result(folder: Path, job: Job, weighting: Weighting, rows: Sequence[Row], **more: Any) -> None:
    """Write a finished run's file for `reproduce`; `more` is what the study's own report reads by `read_result`."""
    result = {"averaged_weights": weighting.averaged_weights().tolist(), "rows": rows, **more}
    write_whole(folder / f"{job.file_name}.json", json.dumps(result).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, so that a killed process leaves no partial one."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
