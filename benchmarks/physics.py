"""What a step of the study `helmholtz` costs under each method, over the same step with equal weights.

Its networks are small and its losses are derivatives of them, so that T gradients more are dear. Paired: in every round
each method takes its turn in random order, and is divided by what equal weights took in that round.

    python benchmarks/physics.py
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from gradnorm_studies.engine.training import advance
from gradnorm_studies.helmholtz import PhysicsInformed

METHODS = ("equal", "gradnorm", "closed-form", "uncertainty")
STEPS = 20
"""Steps of one turn."""


def turns(problem: str) -> dict[str, Callable[[], None]]:
    """By method, what takes `STEPS` steps of a run of its own."""
    study = PhysicsInformed()
    jobs = {job.method: job for job in study.jobs() if job.problem == problem and job.seed == 0}

    def turn(method: str) -> Callable[[], None]:
        run = study.experiment(jobs[method])

        def work() -> None:
            for step in range(STEPS):
                advance(run, step, [], record=False)

        return work

    return {method: turn(method) for method in METHODS}


def ratios(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """By method: milliseconds a step, and the ratio to equal weights; medians of the rounds after the first."""
    seconds: dict[str, list[float]] = {method: [] for method in works}
    for _ in range(rounds + 1):
        for method in random.sample(list(works), len(works)):
            start = time.perf_counter()
            works[method]()
            seconds[method].append(time.perf_counter() - start)
    equal = seconds["equal"]
    paired = {m: median(a / b for a, b in zip(taken[1:], equal[1:], strict=True)) for m, taken in seconds.items()}
    return {method: (1e3 * median(taken[1:]) / STEPS, paired[method]) for method, taken in seconds.items()}


def table(found: dict[str, dict[str, tuple[float, float]]], rounds: int) -> str:
    """A row per problem."""
    lines = [
        f"A step of `gradnorm reproduce helmholtz` over that with equal weights, by `python benchmarks/physics.py "
        f"--rounds {rounds}`; one CPU thread; the median of {rounds} rounds of {STEPS} steps. "
        f"PyTorch {torch.__version__}.",
        "",
        "| problem | losses | equal | " + " | ".join(METHODS[1:]) + " |",
        "| --- " * (len(METHODS) + 2) + "|",
    ]
    for problem, times in found.items():
        cells = [f"{times[method][1]:.2f}" for method in METHODS[1:]]
        count = len(PhysicsInformed().tasks(problem))
        lines.append(f"| {problem} | {count} | {times['equal'][0]:.1f} ms | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "physics.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {problem: ratios(turns(problem), arguments.rounds) for problem in PhysicsInformed.problems}
    text = table(found, arguments.rounds)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
