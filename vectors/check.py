"""Checks an implementation of GradNorm against the vectors beside this file.

    python vectors/check.py ADAPTER.py [--source PATH] [--only NAME …] [--tolerance 1e-9] [--mean]

An adapter is a file with a function `run(settings, steps, source)`; README.md says what it is given and what it gives
back. This file needs Python alone. The exit status is the number of vectors of Algorithm 1 that differ, and 1 where
none could be run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
FIELDS = (
    "gradient_norms",
    "inverse_training_rates",
    "target_norms",
    "gradnorm_loss",
    "weight_gradients",
    "weights",
    "network_gradient",
)
"""What a step is compared by, in the order of its computation: the first that differs is where the rule does."""
UNSCALED = tuple(field for field in FIELDS if field not in ("gradnorm_loss", "weight_gradients"))
"""What does not depend on whether `L_grad` is a sum or a mean."""
Run = Callable[[dict[str, Any], list[Any], str | None], Sequence[dict[str, Any]]]


class ReportError(ValueError):
    """A report is not what README.md asks for."""


class Outcome(NamedTuple):
    """What an implementation does on a vector.

    Attributes:
        verdict: "passes", "differs" or "cannot run".
        why: Where it differs first, or why it cannot run.
    """

    verdict: str
    why: str = ""


def read(only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The vectors by name, those of Algorithm 1 first."""
    files = sorted(FOLDER.glob("*.json"))
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    if unknown := set(only) - set(found):
        raise SystemExit(f"--only: there is no vector {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    chosen = {name: vector for name, vector in found.items() if not only or name in only}
    return dict(sorted(chosen.items(), key=lambda item: item[1]["source"]))


def check(
    vector: dict[str, Any], run: Run, source: str | None = None, tolerance: float = 1e-9, is_mean: bool = False
) -> Outcome:
    """Run an implementation on one vector and compare what it reports, step by step.

    Args:
        vector: As read from its file.
        run: Of the adapter.
        source: Passed to it.
        tolerance: Relative to the number and to the largest beside it.
        is_mean: The implementation's `L_grad` is a mean over the tasks: give it a learning rate T times as large, and
            compare only what does not scale with it.
    """
    settings, fields = vector["settings"], FIELDS
    steps = [step["batches"] for step in vector["steps"]]
    if is_mean and "lr" in settings:
        settings, fields = {**settings, "lr": settings["lr"] * len(steps[0][0]["losses"])}, UNSCALED
    try:
        reported = run(settings, steps, source)
    except NotImplementedError as error:
        return Outcome("cannot run", str(error))
    expected = [step["expected"] for step in vector["steps"]]
    if len(reported) != len(expected):
        return Outcome("differs", f"{len(reported)} steps reported of {len(expected)}")
    for number, (found, wanted) in enumerate(zip(reported, expected, strict=True)):
        if unknown := set(found) - set(FIELDS):
            raise ReportError(f"run() reports {', '.join(sorted(unknown))}; a step has {', '.join(FIELDS)}")
        if "weights" not in found:
            raise ReportError("run() must report the weights of each step")
        if unsaid := set(vector["needs"]) - set(found):
            return Outcome("cannot run", f"reports no {', '.join(sorted(unsaid))}, which this vector is about")
        for field in fields:
            if field in found and field in wanted and not _close(found[field], wanted[field], tolerance):
                numbers = f"{_shown(found[field])}, expected {_shown(wanted[field])}"
                return Outcome("differs", f"{field} of step {number}: {numbers}")
    return Outcome("passes")


def load(path: str) -> Run:
    """The `run` of an adapter's file."""
    file = Path(path)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise SystemExit(f"{path} is no Python file; give the path of an adapter, as vectors/adapters/ours.py")
    sys.path.insert(0, str(file.resolve().parent))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "run"):
        raise SystemExit(f"{path} has no function run(settings, steps, source); vectors/README.md says what it does")
    return module.run


def _close(found: Any, wanted: Any, tolerance: float) -> bool:
    a, b = list(_flat(found)), list(_flat(wanted))
    largest = max(map(abs, b), default=0.0)
    return len(a) == len(b) and all(
        math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance * largest) for x, y in zip(a, b, strict=True)
    )


def _flat(numbers: Any) -> Iterator[float]:
    if isinstance(numbers, int | float):
        yield float(numbers)
    else:
        for part in numbers:
            yield from _flat(part)


def _shown(numbers: Any) -> str:
    return " ".join(f"{number:.4g}" for number in _flat(numbers))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="a file with run(settings, steps, source)")
    parser.add_argument("--source", help="passed to the adapter: where the implementation is, if it is not installed")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these vectors alone")
    parser.add_argument("--tolerance", type=float, default=1e-9, help="relative; 1e-5 for single precision")
    parser.add_argument("--mean", action="store_true", help="for an L_grad that is a mean over tasks: lr times T")
    arguments = parser.parse_args()
    run, vectors = load(arguments.adapter), read(arguments.only)
    width = max(map(len, vectors))
    failures, has_run = 0, False
    for name, vector in vectors.items():
        try:
            outcome = check(vector, run, arguments.source, arguments.tolerance, arguments.mean)
        except ReportError as error:
            raise SystemExit(f"{arguments.adapter}: {error}") from None
        has_run |= outcome.verdict != "cannot run"
        failures += outcome.verdict == "differs" and vector["source"] == "Algorithm 1"
        print(f"{name:{width}}  {outcome.verdict:10}  {outcome.why}".rstrip(), flush=True)
    return failures if has_run else 1


if __name__ == "__main__":
    sys.exit(main())
