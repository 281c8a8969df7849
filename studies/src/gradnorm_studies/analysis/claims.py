"""The paper's claims as data, and a verdict per claim, counted over the seeds of our runs.

A claim is a yes-or-no question per seed: all methods with the same seed start from the same initial values and see the
same batches, so each seed is a paired comparison. A claim holds if every seed answers yes, does not hold if none does,
and is mixed otherwise. The questions and their thresholds were written before the first result was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.analysis.report import Table

Verdict = Literal["holds", "does not hold", "mixed"]
Answers = NDArray[np.bool_]
Look = Callable[[Metrics, str], "Evidence"]
"""Called as `(metrics, problem)`; returns the evidence."""
Name = Callable[[str], str]
"""Maps a problem to the task that a claim is about."""
Names = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Evidence:
    """Our runs' answer to one claim."""

    answers: Answers
    """bool, [seeds]."""
    found: str
    """The figures behind the answers, as text."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, its section, and the function that answers it for one problem."""

    text: str
    source: str
    look: Look


def verdict(answers: Answers) -> Verdict:
    """The verdict over seeds.

    Examples:
        >>> verdict(np.array([True, True])), verdict(np.array([True, False])), verdict(np.array([False]))
        ('holds', 'mixed', 'does not hold')
    """
    if answers.all():
        return "holds"
    return "mixed" if answers.any() else "does not hold"


def below(metric: str, method: str, other: str, largest: bool = False) -> Look:
    """Whether `method` ends below `other` (above it, where `largest` is best)."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        ours, theirs = (metrics.final(problem, name, metric) for name in (method, other))
        answers = ours > theirs if largest else ours < theirs
        return Evidence(answers, f"{method} {spread(ours)}, {other} {spread(theirs)}")

    return look


def suppressed(ratio: str, method: str, small: Name, large: Name) -> Look:
    """Whether the task `small(problem)` ends with a larger loss ratio than the task `large(problem)`."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        names = small(problem), large(problem)
        low, high = (metrics.final(problem, method, f"{ratio}/{name}") for name in names)
        return Evidence(low > high, f"loss left: {names[0]} {spread(low)}, {names[1]} {spread(high)}")

    return look


def ordered(method: str, raised: Name, lowered: Name) -> Look:
    """Whether the method ends with the weight of one task above 1 and that of another below."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        names = raised(problem), lowered(problem)
        up, down = (metrics.final(problem, method, f"weight/{name}") for name in names)
        return Evidence((up > 1) & (down < 1), f"w: {names[0]} {spread(up)}, {names[1]} {spread(down)}")

    return look


def settled(method: str, tasks: Names, tolerance: float = 0.1) -> Look:
    """Whether the standard deviation of every weight over the last quarter of the run is below `tolerance`.

    The mean weight is 1, so the tolerance is relative.
    """

    def look(metrics: Metrics, problem: str) -> Evidence:
        traces = np.stack([metrics.series(problem, method, f"weight/{task}") for task in tasks(problem)])
        late = traces[:, :, -max(2, traces.shape[2] // 4) :]
        widest = late.std(axis=2).max(axis=0)
        return Evidence(widest < tolerance, f"largest standard deviation of a weight {spread(widest)}")

    return look


def deteriorated(metric: str, method: str, tolerance: float = 0.02) -> Look:
    """Whether the metric ends more than `tolerance` (relative) above its best."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        series = metrics.series(problem, method, metric)
        best, end = series.min(axis=1), series[:, -1]
        return Evidence(end > (1 + tolerance) * best, f"best {spread(best)}, end {spread(end)}")

    return look


def faster_at_first(metric: str, method: str, other: str, share: float = 0.1) -> Look:
    """Whether `method` is below `other` after this share of the run."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        ours, theirs = (metrics.series(problem, name, metric) for name in (method, other))
        at = round(share * (ours.shape[1] - 1))
        return Evidence(ours[:, at] < theirs[:, at], f"{method} {spread(ours[:, at])}, {other} {spread(theirs[:, at])}")

    return look


def growing(method: str, tasks: Names) -> Look:
    """Whether the sum of the weights still grows in the second half of the run."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        total = np.sum([metrics.series(problem, method, f"weight/{task}") for task in tasks(problem)], axis=0)
        half, end = total[:, total.shape[1] // 2], total[:, -1]
        return Evidence(end > half, f"Σ w: half-way {spread(half)}, end {spread(end)}")

    return look


def spread(values: NDArray[np.float64]) -> str:
    """Mean ± standard deviation over seeds.

    Examples:
        >>> spread(np.array([1.0, 2.0, 3.0]))
        '2 ± 1'
    """
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{values.mean():.3g} ± {values.std(ddof=1):.2g}"


def table(claims: Sequence[Claim], metrics: Metrics, problems: Sequence[str]) -> Table:
    """One row per claim and problem: the sentence, our figures, the seeds that agree, the verdict."""
    rows = []
    for claim in claims:
        for problem in problems:
            evidence = claim.look(metrics, problem)
            agree = f"{int(evidence.answers.sum())} of {len(evidence.answers)}"
            rows.append((claim.text, claim.source, problem, evidence.found, agree, verdict(evidence.answers)))
    return Table(
        "What the paper says, and what we found",
        ("the paper says", "where", "on", "we found", "seeds", "verdict"),
        rows,
        "Computed from the runs: holds if every seed agrees, does not hold if none does, mixed otherwise.",
        terminal=("the paper says", "on", "seeds", "verdict"),
    )


def as_questions(verdicts: Table) -> Table:
    """The table for questions of our own: claims that the paper does not make about these tasks."""
    return replace(
        verdicts,
        title="What we asked, and what we found",
        header=("we asked whether", "from", *verdicts.header[2:]),
        terminal=("we asked whether", *verdicts.terminal[1:]),
    )


def losses_of(method: str, metrics: Metrics, problems: Sequence[str], metric: str, largest: bool = False) -> str:
    """One sentence on where a method is not the best on average."""
    sentences = []
    for problem in problems:
        means = {name: float(metrics.final(problem, name, metric).mean()) for name in metrics.methods(problem)}
        ahead = [n for n, v in means.items() if (v > means[method] if largest else v < means[method])]
        where = f"behind {', '.join(ahead)}" if ahead else "behind no other method"
        sentences.append(f"on {problem} it ends {where}")
    return f"Where {method} loses, by the mean of {metric}: " + "; ".join(sentences) + "."
