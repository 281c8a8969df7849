"""Claims as data, and a verdict on each, from the paired differences of our runs.

A claim is a question per seed, answered by a margin: how far the runs of this seed are on the side of the claim. All
methods with a seed start from the same initial values and see the same batches, so each seed is a paired comparison. A
claim holds if the mean margin is above twice its standard error, does not hold if it is as far below zero, and is
undecided in between; fewer than three seeds, or a run shorter than the study's own, are not enough to say. That is a
lenient rule: where there is no effect, it decides 18 % of the questions of three seeds, and 12 % of those of five. The
questions and their thresholds were written before the first result was seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradnorm_studies.analysis.metrics import Metrics, MissingRunError, Quantity
from gradnorm_studies.analysis.report import Table

Verdict = Literal["holds", "does not hold", "undecided", "not enough to say", "a run diverged"]
Array = NDArray[np.float64]
Look = Callable[[Metrics, str], "Evidence"]
"""Called as `(metrics, problem)`; returns the evidence."""
Name = Callable[[str], str]
"""Maps a problem to the task that a claim is about."""
Names = Callable[[str], Sequence[str]]

FEWEST_SEEDS = 3
STANDARD_ERRORS = 2.0
FEWEST_RECORDS = 5
"""Records over which a weight's late unrest is taken, at least."""

RULES = {"GradNorm": "gradnorm", "The closed form": "closed-form"}
"""Both updates: how a claim names each, and the method."""


@dataclass(frozen=True)
class Evidence:
    """Our runs' answer to one claim."""

    margins: Array
    """[seeds]; positive where the claim is right."""
    found: str
    """The figures behind the margins, as text."""


@dataclass(frozen=True)
class Claim:
    """A sentence, its source, and the function that answers it for one problem."""

    text: str
    source: str
    look: Look


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim for one problem."""

    text: str
    source: str
    problem: str
    found: str
    margin: float
    standard_error: float
    seeds: int
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """For a file of JSON."""
        return dataclasses.asdict(self)


def verdict(margins: Array) -> Verdict:
    """The verdict over seeds.

    Examples:
        >>> verdict(np.array([1.0, 1.2, 1.1])), verdict(np.array([-1.0, 1.0, 0.1])), verdict(np.array([1.0, 1.0]))
        ('holds', 'undecided', 'not enough to say')
    """
    if not np.isfinite(margins).all():
        return "a run diverged"
    if len(margins) < FEWEST_SEEDS:
        return "not enough to say"
    bound = STANDARD_ERRORS * standard_error(margins)
    if margins.mean() > bound:
        return "holds"
    return "does not hold" if margins.mean() < -bound else "undecided"


def standard_error(values: Array) -> float:
    """The standard error of the mean; NaN for a single value."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def beats(quantity: Quantity, method: str, other: str) -> Look:
    """Whether `method` ends better than `other`."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        ours, theirs = (metrics.final(problem, name, quantity.name) for name in (method, other))
        margins = ours - theirs if quantity.largest else theirs - ours
        return Evidence(margins, f"{quantity.name}: {method} {spread(ours)}, {other} {spread(theirs)}")

    return look


def both_beat(text: str, source: str, quantity: Quantity, other: str) -> list[Claim]:
    """A claim per update rule: that it ends better than `other`; `{}` in the text stands for the rule's name."""
    return [Claim(text.format(rule), source, beats(quantity, method, other)) for rule, method in RULES.items()]


def suppressed(ratio: str, method: str, small: Name, large: Name) -> Look:
    """Whether the task `small(problem)` ends with a larger loss ratio than the task `large(problem)`."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        names = small(problem), large(problem)
        low, high = (metrics.final(problem, method, f"{ratio}/{name}") for name in names)
        return Evidence(low - high, f"loss left: {names[0]} {spread(low)}, {names[1]} {spread(high)}")

    return look


def ordered(method: str, raised: Name, lowered: Name) -> Look:
    """Whether the method ends with the weight of one task above 1 and that of another below."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        names = raised(problem), lowered(problem)
        up, down = (metrics.final(problem, method, f"weight/{name}") for name in names)
        return Evidence(np.minimum(up - 1, 1 - down), f"w: {names[0]} {spread(up)}, {names[1]} {spread(down)}")

    return look


def light(method: str, task: str, bound: float) -> Look:
    """Whether the task's weight ends below `bound`; the mean weight is 1."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        weight = metrics.final(problem, method, f"weight/{task}")
        return Evidence(bound - weight, f"w: {task} {spread(weight)}")

    return look


def settled(method: str, tasks: Names, tolerance: float = 0.1) -> Look:
    """Whether the standard deviation of every weight over the last records, as `unrest` has it, is below `tolerance`.

    The mean weight is 1, so the tolerance is relative.
    """

    def look(metrics: Metrics, problem: str) -> Evidence:
        traces = np.stack([metrics.series(problem, method, f"weight/{task}") for task in tasks(problem)])
        widest = unrest(traces)
        return Evidence(tolerance - widest, f"largest standard deviation of a weight {spread(widest)}")

    return look


def unrest(traces: Array) -> Array:
    """[tasks, seeds, R] → [seeds], the largest standard deviation of a weight late in the run.

    Late is the last quarter of the records, but not fewer than `FEWEST_RECORDS`, since two would say little.
    """
    return traces[:, :, -max(FEWEST_RECORDS, traces.shape[2] // 4) :].std(axis=2).max(axis=0)


def deteriorated(quantity: Quantity, method: str, tolerance: float = 0.02) -> Look:
    """Whether the quantity, of which less is better, ends more than `tolerance` (relative) above its best."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        series = metrics.series(problem, method, quantity.name)
        best, end = series.min(axis=1), series[:, -1]
        return Evidence(end - (1 + tolerance) * best, f"best {spread(best)}, end {spread(end)}")

    return look


def faster_at_first(quantity: Quantity, method: str, other: str, share: float = 0.1) -> Look:
    """Whether `method` is below `other` after this share of the run."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        ours, theirs = (metrics.series(problem, name, quantity.name) for name in (method, other))
        at = round(share * (ours.shape[1] - 1))
        found = f"{method} {spread(ours[:, at])}, {other} {spread(theirs[:, at])}"
        return Evidence(theirs[:, at] - ours[:, at], found)

    return look


def growing(method: str, tasks: Names) -> Look:
    """Whether the sum of the weights still grows in the second half of the run."""

    def look(metrics: Metrics, problem: str) -> Evidence:
        total = np.sum([metrics.series(problem, method, f"weight/{task}") for task in tasks(problem)], axis=0)
        half, end = total[:, total.shape[1] // 2], total[:, -1]
        return Evidence(end - half, f"Σ w: half-way {spread(half)}, end {spread(end)}")

    return look


def spread(values: Array) -> str:
    """Mean ± standard deviation over seeds.

    Examples:
        >>> spread(np.array([1.0, 2.0, 3.0]))
        '2 ± 1'
    """
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{values.mean():.3g} ± {values.std(ddof=1):.2g}"


def paired(mean: str, error: float) -> str:
    """A mean paired difference and its standard error, which a single seed has not.

    Examples:
        >>> paired("+0.2", 0.13), paired("+41", 28.0), paired("+0.2", math.nan)
        ('+0.2 ± 0.1', '+41 ± 28', '+0.2')
    """
    return mean if math.isnan(error) else f"{mean} ± {error:{'.1g' if error < 9.5 else '.0f'}}"


def examine(
    claims: Iterable[Claim], metrics: Metrics, problems: Sequence[str], is_short: bool = False
) -> list[Finding]:
    """A finding per claim and problem whose methods were run.

    Args:
        claims: The claims.
        metrics: The results of the runs.
        problems: Names of the problems.
        is_short: Whether the runs are shorter than the study's own, so that no verdict follows.
    """
    return [
        finding
        for claim in claims
        for problem in problems
        if (finding := _examine(claim, metrics, problem, is_short)) is not None
    ]


def _examine(claim: Claim, metrics: Metrics, problem: str, is_short: bool) -> Finding | None:
    try:
        evidence = claim.look(metrics, problem)
    except MissingRunError:
        return None
    margins = evidence.margins
    found = "not enough to say" if is_short else verdict(margins)
    mean, error = float(margins.mean()), standard_error(margins)
    return Finding(claim.text, claim.source, problem, evidence.found, mean, error, len(margins), found)


PAPERS = "What the paper says, and what we found", ("the paper says", "where")
OURS = "What we asked, and what we found", ("we asked whether", "from")


def tables(findings: Sequence[Finding], is_papers: bool = True) -> list[Table]:
    """One row per finding: the sentence, our figures, the mean margin, the verdict; no table without findings.

    A terminal shows it if anything has been decided.
    """
    if not findings:
        return []
    title, (sentence, source) = PAPERS if is_papers else OURS
    rows = [
        (f.text, f.verdict, f.problem, f.found, paired(f"{f.margin:.2g}", f.standard_error), str(f.seeds), f.source)
        for f in findings
    ]
    header = (sentence, "verdict", "on", "we found", "margin ± s.e.", "seeds", source)
    rule = (
        "holds above two standard errors, does not hold below minus two, undecided between. Fewer than "
        f"{FEWEST_SEEDS} seeds, or fewer steps than the study's own: not enough to say."
    )
    chance = " Without any effect that decides 18 % of questions of three seeds by chance, and 12 % of those of five."
    note = (
        "The margin is the mean over seeds of how far the paired runs are on the side of the claim, with its standard "
        f"error: {rule}{chance}"
    )
    short = f"By the mean over seeds of paired differences: {rule}"
    is_decided = any(finding.verdict != "not enough to say" for finding in findings)
    shown = (sentence, "verdict", "on", "seeds") if is_decided else None
    return [Table(title, header, rows, note, terminal=shown, terminal_note=short)]
