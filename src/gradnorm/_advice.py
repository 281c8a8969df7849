"""Interpretation of measurements: which task dominates, which tasks conflict, and what to do about it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _html
from ._errors import NOT_POSITIVE
from ._history import FIELDS, History
from ._updates import LR

EVEN = 2.0
"""Largest ratio of gradient norms that counts as even."""
DOMINANT = 10.0
"""Ratio of gradient norms from which one task trains the shared layers almost alone."""
LEAST = LR
"""One step of the weights' default optimizer, which cannot hold a smaller weight steadily."""
CONFLICT = -0.3
"""Cosine below which two tasks conflict."""
ENOUGH = 20
"""Minimum number of recorded steps for a trend."""
SETTLED = 0.1
"""Largest relative change of a weight that has converged."""
STUCK = 0.9
"""Ratio to the first loss above which a loss has not fallen."""
RISEN = 3.0
"""Ratio to the first loss above which a loss is another one, or training diverges."""
FALLEN = 0.7
"""Ratio to the first loss below which a loss has fallen."""
SHRUNK = 1e-2
"""Largest weighted gradient norm, as it is and as a part of the largest raw one, below which it is the weights that may
keep all from being learned."""
SMALLER = 0.1
"""The same part, below which it is told without a fault."""

Series = Mapping[str, Mapping[str, list[float]]]


class Report(str):
    """A balancer's report: a `str` to print, with its figures as attributes. T is the number of tasks.

    Figures per step are of the last recorded step in which the task was present; NaN for a task that never was.

    Attributes:
        tasks: Their names.
        weights: [T], as they are now.
        averaged_weights: [T], over all steps.
        losses: [T].
        loss_ratios: [T], the loss over `L_i(0)`; NaN where one of them is not positive.
        norms: [T], `G_i`.
        targets: [T], `Ḡ r_i^α`.
        rates: [T], `r_i`.
        cosines: [T, T], between the tasks' gradients, the mean over the recorded steps; `None` if none were taken.
        layer: Description of `W`.
        steps: Number of steps.
        skipped: Number of steps without an update, since numbers were bad or only a part was measured.
        findings: Sentences about what is as it should be, or not decided yet.
        advice: Sentences about what to act on; empty where nothing is wrong.

    Examples:
        >>> import torch
        >>> from gradnorm import GradNorm
        >>> _ = torch.manual_seed(0)
        >>> trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
        >>> balancer = GradNorm(["near", "far"], shared=trunk.weight)
        >>> for _ in range(40):
        ...     features = trunk(torch.randn(16, 8))
        ...     balancer([(scale * head(features)).square().mean() for scale, head in zip((1, 2), heads)]).backward()
        ...     balancer.step()
        >>> report = balancer.report()
        >>> report.splitlines()[1]
        '40 steps, of which 40 are recorded'
        >>> report.tasks, report.skipped, bool(report.norms.isfinite().all())
        (('near', 'far'), 0, True)
    """

    tasks: tuple[str, ...]
    weights: Tensor
    averaged_weights: Tensor
    losses: Tensor
    loss_ratios: Tensor
    norms: Tensor
    targets: Tensor
    rates: Tensor
    cosines: Tensor | None
    layer: str
    steps: int
    skipped: int
    findings: list[str]
    advice: list[str]
    _columns: dict[str, list[str]]
    """The table's, as text."""

    def _repr_html_(self) -> str:
        beside = {"weight": _html.bars(self.weights.tolist()), "norm": _html.bars(self.norms.tolist())}
        parts = [_html.table({"task": self.tasks, **self._columns}, beside)]
        if self.cosines is not None:
            parts.append(_html.matrix("cosine", self.tasks, self.cosines.tolist()))
        title = f"{self.steps:,} steps; shared layer: {self.layer}"
        return _html.document(title, parts, [*self.advice, *self.findings])


class Training(NamedTuple):
    """The state of training beside its history; T numbers each.

    Attributes:
        weights: The current weights.
        averaged_weights: The weights averaged over all steps.
        initial_losses: `L_i(0)`; NaN where not known.
        layer: Description of `W`.
        steps: Number of steps.
        skipped: Number of steps without an update, since numbers were bad or only a part was measured.
        needs_losses: Whether losses must be positive.
        min_weight: Lower bound on the weights; 0 for none.
        is_frozen: Whether weights are frozen.
        is_constant: Whether the update rule itself keeps them.
        unbalanced: The sentence that says why no weight was updated, or no longer; `None` if one is.
    """

    weights: Tensor
    averaged_weights: Tensor
    initial_losses: Tensor
    layer: str
    steps: int
    skipped: int
    needs_losses: bool
    min_weight: float
    is_frozen: bool
    is_constant: bool
    unbalanced: str | None


def describe(history: History, training: Training) -> Report:
    """The text and the figures of `GradNorm.report`."""
    tasks, series = history.tasks, _series(history)
    last = {name: torch.tensor([series[task][name][-1] for task in tasks], device="cpu") for name in FIELDS}
    ratios = torch.where(last["loss"] > 0, last["loss"] / training.initial_losses, math.nan)
    columns = {
        "weight": cells(training.weights),
        "average": cells(training.averaged_weights),
        **{name: cells(last[name]) for name in ("loss", "norm", "target", "rate")},
        "÷L(0)": cells(ratios, ".0%"),
    }
    if training.is_constant:
        columns = {name: column for name, column in columns.items() if name not in ("weight", "average", "target")}
    lines = [
        f"Shared layer: {training.layer}",
        f"{training.steps:,} steps, of which {len(history):,} are recorded",
    ]
    table = history.mean_cosines()
    findings, advice = _progress(tasks, series, training)
    advice += [*_floor(history, training), *_stuck(tasks, series, training), *conflicts(tasks, table)]
    findings = [finding for finding in findings if not any(finding in each for each in advice)]
    report = Report(page(lines, tasks, columns, table, [*advice, *findings]))
    report.tasks, report.layer, report.steps, report._columns = tasks, training.layer, training.steps, columns
    report.weights, report.averaged_weights = training.weights, training.averaged_weights
    report.losses, report.loss_ratios, report.norms = last["loss"], ratios, last["norm"]
    report.targets, report.rates, report.cosines = last["target"], last["rate"], table
    report.skipped, report.findings, report.advice = training.skipped, findings, advice
    return report


def cells(values: Tensor, form: str = ".3g") -> list[str]:
    """[T], the numbers as text; a dash for NaN."""
    return ["–" if math.isnan(value) else f"{value:{form}}" for value in values.tolist()]


# ------------------------------------------------------------------------------------------------------------ advice


def bad_numbers(tasks: Sequence[str], losses: Sequence[float], norms: Sequence[float]) -> Iterator[str]:
    """Unusable numbers: losses or norms that are not finite, gradients of zero, losses that are not positive."""
    for task, loss, norm in zip(tasks, losses, norms, strict=True):
        if not math.isfinite(loss) or not math.isfinite(norm):
            yield f"{task}: the loss is {loss:g} and its gradient norm {norm:g}. Fix that first."
        elif norm == 0:
            yield _ZERO.format(task)
        if loss <= 0:
            yield (
                f"{task}'s loss is {loss:g}. With alpha > 0 losses are compared with their first values and must be "
                "positive: give alpha=0, which balances gradients alone."
            )


_ZERO = (
    "{}'s gradient is zero at this layer. If its head starts at zero this is temporary; if the heads' outputs are "
    "concatenated before the losses, give the last shared layer with shared=; else check how its loss depends on the "
    "network, or leave it out."
)


def evenness(tasks: Sequence[str], norms: Sequence[float]) -> Iterator[str]:
    """The ratio of the gradient norms, where it is no problem."""
    if (found := _extremes(tasks, norms)) is None:
        return
    least, low, most, high = found
    if (ratio := most / least) < EVEN:
        yield f"All gradients are within a factor of {ratio:.2g}: equal weights are probably as good for a start."
    elif ratio < DOMINANT:
        yield (
            f"{high}'s gradient is {ratio:.3g} times that of {low}: GradNorm will even this out, up to the factor "
            "r^alpha of the training rates."
        )


def dominance(tasks: Sequence[str], norms: Sequence[float]) -> Iterator[str]:
    """Whether one task's gradient dominates, and whether a weight can hold that."""
    if (found := _extremes(tasks, norms)) is None:
        return
    least, low, most, high = found
    if (ratio := most / least) >= DOMINANT:
        yield (
            f"{high}'s gradient is {ratio:.3g} times that of {low}: with equal weights the shared layers train for "
            f"{high} almost alone. GradNorm lowers its weight until the norms are even."
        )
    usable = [norm for norm in norms if norm > 0]
    even = len(usable) / most / sum(1 / norm for norm in usable)
    if even < LEAST:
        scaled = f"divide {high}'s loss" if most > 1 else f"multiply {low}'s loss"
        yield (
            f"That takes a weight of about {even:.1g}, less than one step of the weights' Adam ({LEAST:g}), which "
            f'cannot hold it steadily: use update="closed-form", or {scaled} by about {_rounded(ratio)} first.'
        )


def _rounded(factor: float) -> str:
    """With one digit, as in 20,000."""
    return f"{float(f'{factor:.0e}'):,.0f}"


def _extremes(tasks: Sequence[str], norms: Sequence[float]) -> tuple[float, str, float, str] | None:
    """The smallest and the largest nonzero norm, each with its task."""
    usable = [(norm, task) for norm, task in zip(norms, tasks, strict=True) if norm > 0]
    if len(usable) < 2 or not all(math.isfinite(norm) for norm, _ in usable):
        return None
    return *min(usable), *max(usable)


def conflicts(tasks: Sequence[str], table: Tensor | None) -> Iterator[str]:
    if table is None:
        return
    for i, first in enumerate(tasks):
        for j in range(i + 1, len(tasks)):
            if (cosine := table[i, j].item()) < CONFLICT:
                yield (
                    f"{first} and {tasks[j]} conflict (cosine {cosine:.2f}). Weights cannot resolve that; methods that "
                    "combine gradients may, see the page on TorchJD."
                )


def _progress(tasks: Sequence[str], series: Series, training: Training) -> tuple[list[str], list[str]]:
    """Whether the weights have converged: findings and advice."""
    if training.unbalanced is not None:
        return [], [training.unbalanced]
    skips = list(_skips(training, series))
    findings, advice = ([], skips) if 100 * training.skipped >= training.steps else (skips, [])
    waiting = [task for task, first in zip(tasks, training.initial_losses.tolist(), strict=True) if first != first]
    traces = {task: series[task] for task in tasks if len(series[task]["weight"]) >= ENOUGH}
    if training.is_constant:
        norms = [_recent(series[task]["norm"]) for task in tasks]
        findings += evenness(tasks, norms)
        advice += dominance(tasks, norms)
    elif training.is_frozen:
        findings.append("The weights are frozen.")
    elif any(math.isnan(trace["target"][-1]) for trace in traces.values()) and waiting:
        findings.append(f"The weights are not updated until the first losses of {', '.join(waiting)} are known.")
    elif traces:
        _settled(traces, training, findings, advice)
    return findings, advice


def _settled(traces: Series, training: Training, findings: list[str], advice: list[str]) -> None:
    if shrunk := _shrunk(traces, SMALLER):
        findings.append(shrunk)
    moves = {task: _move(trace["weight"]) for task, trace in traces.items()}
    moved = max(moves, key=lambda task: abs(moves[task]))
    zero = [task for task, trace in traces.items() if _recent(trace["norm"]) == 0]
    advice += [_ZERO.format(task) for task in zero]
    off = {
        task: _recent(trace["norm"]) / (_recent(trace["target"]) or math.nan)
        for task, trace in traces.items()
        if task not in zero
    }
    far = {task: ratio for task, ratio in off.items() if not 1 / EVEN < ratio < EVEN and math.isfinite(ratio)}
    if abs(moves[moved]) > SETTLED:
        findings.append(
            f"The weights are still changing: {moved}'s by {moves[moved]:+.0%} from the third quarter of the recorded "
            "steps to the last."
        )
    elif not far and not zero and all(map(math.isfinite, off.values())):
        furthest = max(off.values(), key=lambda ratio: abs(math.log(ratio)))
        findings.append(
            f"The weights have converged: from the third quarter of the recorded steps to the last none has changed by "
            f"more than {SETTLED:.0%}, and gradient norms are within {abs(furthest - 1):.0%} of their targets."
        )
    elif far and training.min_weight > 0:
        task = max(far, key=lambda task: abs(math.log(far[task])) if far[task] > 0 else math.inf)
        advice.append(
            f"The weights hardly change, but {task}'s gradient norm is {far[task]:.2g} times its target: raise "
            'Descent(lr=), or use update="closed-form".'
        )


def _skips(training: Training, series: Mapping[str, Mapping[str, list[float]]]) -> Iterator[str]:
    if not training.skipped:
        return
    what = "measurements cannot be used" if training.is_constant else "updates were skipped"
    skipped = f"{training.skipped:,} of {training.steps:,} {what}"
    if bad := [task for task, values in series.items() if _is_bad(values, training.needs_losses)]:
        why = f"since the loss of {', '.join(bad)} or its gradient norm was not finite"
        yield f"{skipped}, {why}{NOT_POSITIVE if training.needs_losses else ''}."
    else:
        yield f"{skipped}: numbers that could not be used, or steps of which only a part was measured."


def _is_bad(values: Mapping[str, list[float]], needs_losses: bool) -> bool:
    usable = all(map(math.isfinite, [*values["loss"], *values["norm"]]))
    return not usable or (needs_losses and min(values["loss"]) <= 0)


def _floor(history: History, training: Training) -> Iterator[str]:
    lowest = history.lowest_weights()
    for task, weight, low in zip(history.tasks, training.weights.tolist(), lowest, strict=True):
        if min(weight, low) <= 2 * training.min_weight:
            when = "is at" if weight <= 2 * training.min_weight else "was at"
            yield f'{task} {when} min_weight: use update="closed-form", divide its loss, or lower alpha.'


def _stuck(tasks: Sequence[str], series: Series, training: Training) -> Iterator[str]:
    """Tasks whose loss has not fallen, whatever their weight; losses of either sign have no part to be at."""
    ratios = {
        task: _recent(series[task]["loss"]) / first
        for task, first in zip(tasks, training.initial_losses.tolist(), strict=True)
        if first > 0 and min(series[task]["loss"]) > 0 and len(series[task]["loss"]) >= ENOUGH
    }
    if not ratios:
        return
    best = min(ratios, key=lambda task: ratios[task])
    if ratios[best] > STUCK and not any(min(values["loss"]) <= 0 for values in series.values()):
        remedy = (
            _shrunk(series, SHRUNK) or "Check the training itself, first its learning rate; loss weights cannot help."
        )
        yield f"No loss has fallen: {best}'s, the lowest, is at {ratios[best]:.0%} of its first. {remedy}"
    for task, ratio in ratios.items():
        if ratio > RISEN and ratios[best] <= STUCK:
            yield (
                f"{task}'s loss has risen to {ratio:.3g} times its first. Check that its unit has stayed the same, and "
                "the order of the losses (in a dict there is none), and that training does not diverge."
            )
        elif ratio > STUCK and ratios[best] < FALLEN:
            weight = series[task]["weight"]
            before, now = (f"{weight[place]:.2g}" for place in (0, -1))
            yield (
                f"{task} is stuck: its loss is at {ratio:.0%} of its first and {best}'s at {ratios[best]:.0%}; its "
                f"weight {'is' if before == now else f'has gone from {before} to'} {now}. "
                + (_LIMIT if training.needs_losses and weight[-1] > weight[0] else _LOOK)
            )


def _shrunk(series: Series, limit: float) -> str:
    """What may be wrong where weights of sum T make all gradients as small as the smallest; empty where they do not.

    Adam remembers larger gradients for a thousand steps, in which its own become small beside them.
    """
    norms = {task: _recent(values["norm"]) for task, values in series.items()}
    raw = {task: norms[task] / (_recent(values["weight"]) or math.nan) for task, values in series.items()}
    extremes = _extremes([*raw], [*raw.values()])
    if extremes is None:
        return ""
    least, low, most, _ = extremes
    largest = max(norms.values())
    if largest > limit * min(1.0, most):
        return ""
    return (
        f"Weights that sum to T make all gradients about as small as {low}'s, {largest:.2g}, where the largest would "
        f"be {most:.2g}: multiply {low}'s loss by about {_rounded(most / least)}, which leaves the balance as it is."
    )


_LOOK = "Look at its labels and its head, unless its loss is not meant to fall, as an adversarial one."
_LIMIT = (
    "A stuck task gets an ever larger weight, a limit that the paper names. Look at its labels and its head; if it "
    "cannot be learned, or its loss has a high floor, lower alpha, call freeze(), or leave it out."
)


def _recent(trace: Sequence[float]) -> float:
    """The mean over the last tenth."""
    tenth = max(1, len(trace) // 10)
    return sum(trace[-tenth:]) / tenth


def _move(trace: Sequence[float]) -> float:
    """The relative change from the mean of the third quarter to that of the last: a slow drift shows, too."""
    quarter = len(trace) // 4
    last, before = sum(trace[-quarter:]) / quarter, sum(trace[-2 * quarter : -quarter]) / quarter
    return last / before - 1


# ----------------------------------------------------------------------------------------------------------- reading


def _series(history: History) -> dict[str, dict[str, list[float]]]:
    """Each task's recorded values by field, of the steps in which it was present."""
    series: dict[str, dict[str, list[float]]] = {task: {} for task in history.tasks}
    for row in history.rows():
        values = series[str(row["task"])]
        if row["weight"] == row["weight"]:  # not NaN: the task was present
            for field in FIELDS:
                values.setdefault(field, []).append(float(row[field]))
    empty = {field: [math.nan] for field in FIELDS}
    return {task: values or empty for task, values in series.items()}


# -------------------------------------------------------------------------------------------------------------- text


def page(
    lines: Sequence[str],
    tasks: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    table: Tensor | None,
    advice: Sequence[str],
) -> str:
    parts = ["\n".join(lines), _table({"task": list(tasks), **columns})]
    if table is not None and len(tasks) <= 16:
        cosines = {task: cells(table[:, i], ".2f") for i, task in enumerate(tasks)}
        parts.append(_table({"cosine": list(tasks), **cosines}))
    parts.append("\n".join(line for sentence in advice for line in wrap(sentence, "- ")))
    return "\n\n".join(part for part in parts if part)


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    """A text table, the first column left-aligned, the others right-aligned."""
    padded = []
    for i, (name, cells) in enumerate(columns.items()):
        width = max(map(len, (name, *cells)))
        padded.append([cell.rjust(width) if i else cell.ljust(width) for cell in (name, *cells)])
    return "\n".join("  ".join(row) for row in zip(*padded, strict=True))


def wrap(text: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(text, 88, initial_indent=bullet, subsequent_indent=" " * len(bullet))
