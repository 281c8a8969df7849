"""What the examples share and none repeats: several methods over several seeds, `--steps`, and a table at the end."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import torch
from rich.console import Console
from rich.progress import track

Metrics = dict[str, float]
Results = dict[str, list[Metrics]]
"""Method → the metrics of each seed."""


def compare(run: Callable[[str, int], Metrics], methods: Sequence[str], steps: int, seeds: int) -> Results:
    """`run(method, steps)` once for each method and seed; all methods of a seed see the same numbers drawn."""
    results: Results = {method: [] for method in methods}
    jobs = [(seed, method) for seed in range(seeds) for method in methods]
    for seed, method in track(jobs, "Training", console=Console(stderr=True), transient=True):
        torch.manual_seed(seed)
        results[method].append(run(method, steps))
    return results


def show(main: Callable[..., Results], idea: str | None) -> None:
    """The command line: run `main`, print mean ± standard deviation over the seeds, a metric a line."""
    parser = argparse.ArgumentParser(description=idea, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=argparse.SUPPRESS, help="of each training run")
    arguments = vars(parser.parse_args())
    torch.set_num_threads(1)  # such small networks lose time by more
    results = main(**arguments)
    names = list(next(iter(results.values()))[0])
    width = max(map(len, names))
    print(" " * width + "".join(f"{method:>22}" for method in results))
    for name in names:
        print(f"{name:{width}}" + "".join(f"{_cell([m[name] for m in runs]):>22}" for runs in results.values()))


def _cell(values: list[float]) -> str:
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{fmean(values):.3g}{spread}"
