"""What measurements mean, in plain sentences: who dominates, who pulls against whom, and what to do about it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ._history import FIELDS, History
from ._updates import LR

EVEN = 2.0
"""Gradients within this factor are about even."""
DOMINANT = 10.0
"""From this factor on one task trains the shared layers almost alone."""
LEAST = LR
"""A step of the default optimizer of the weights, which cannot hold a weight below it steadily."""
CONFLICT = -0.3
"""Below this cosine two tasks pull against each other."""


def describe(
    history: History,
    weights: Sequence[float],
    averaged: Sequence[float],
    *,
    layer: str,
    steps: int,
    skipped: int,
    min_weight: float,
) -> str:
    """What a balancer has recorded, in words: the text of `GradNorm.report`.

    Args:
        history: Its history.
        weights: [T], as they are now.
        averaged: [T], over the steps made.
        layer: `W`, in words.
        steps: How many steps were made.
        skipped: How often bad numbers kept the weights from being updated.
        min_weight: The floor under the weights.
    """
    series = _series(history)
    columns = {
        "weight": [f"{weight:.3g}" for weight in weights],
        "average": [f"{weight:.3g}" for weight in averaged],
        **{
            name: [f"{series[task][name][-1]:.3g}" for task in history.tasks]
            for name in ("loss", "norm", "target", "rate")
        },
        "÷first": [f"{series[task]['loss'][-1] / series[task]['loss'][0]:.0%}" for task in history.tasks],
    }
    lines = [f"Shared layer: {layer}", f"{steps:,} steps, of which the last {len(history):,} measured ones are at hand"]
    advice = [
        *_skips(skipped, steps),
        *_floor(history.tasks, weights, min_weight),
        *_stuck(history.tasks, series),
        *_settled(history.tasks, series),
    ]
    table = _mean_cosines(history)
    return page(lines, history.tasks, columns, table, [*advice, *conflicts(history.tasks, table)])


# ------------------------------------------------------------------------------------------------------------ advice


def bad_numbers(tasks: Sequence[str], losses: Sequence[float], norms: Sequence[float]) -> Iterator[str]:
    """What cannot be balanced: numbers that are not finite, gradients of zero, losses that are not positive."""
    for task, loss, norm in zip(tasks, losses, norms, strict=True):
        if not math.isfinite(loss) or not math.isfinite(norm):
            yield f"{task}: the loss is {loss:g} and its gradient norm {norm:g}. Fix that first."
        elif norm == 0:
            yield (
                f"{task}'s gradient is zero at this layer. Where its head starts at zero this passes; where the heads' "
                "outputs are concatenated before the losses, name the last shared layer with shared=."
            )
        if loss <= 0:
            yield (
                f"{task}'s loss is {loss:g}. With α > 0 losses are compared with their first values, which takes "
                "positive ones: give alpha=0, which balances gradients alone."
            )


def dominance(tasks: Sequence[str], norms: Sequence[float]) -> Iterator[str]:
    """Whether one task's gradient is much larger than another's, and whether a weight can hold that."""
    usable = [(norm, task) for norm, task in zip(norms, tasks, strict=True) if norm > 0]
    if len(usable) < 2 or not all(math.isfinite(norm) for norm, _ in usable):
        return
    (least, low), (most, high) = min(usable), max(usable)
    ratio = most / least
    compared = f"{high}'s gradient is {ratio:.3g} times that of {low}"
    if ratio < EVEN:
        yield f"All gradients are within a factor of {ratio:.2g}: equal weights are probably as good for a start."
    elif ratio < DOMINANT:
        yield f"{compared}: GradNorm will even this out as far as the training rates say."
    else:
        yield (
            f"{compared}: with equal weights the shared layers train for {high} almost alone. GradNorm lowers its "
            "weight until the norms are even."
        )
    even = len(usable) / max(usable)[0] / sum(1 / norm for norm, _ in usable)
    if even < LEAST:
        yield (
            f"That takes a weight of about {even:.1g}, less than one step of the weights' Adam ({LEAST:g}), which "
            'cannot hold it steadily: take update="closed-form", or divide '
            f"{high}'s loss by about {float(f'{ratio:.0e}'):,.0f} first."
        )


def conflicts(tasks: Sequence[str], table: Tensor | None) -> Iterator[str]:
    if table is None:
        return
    for i, first in enumerate(tasks):
        for j in range(i + 1, len(tasks)):
            if (cosine := table[i, j].item()) < CONFLICT:
                yield (
                    f"{first} and {tasks[j]} pull against each other (cosine {cosine:.2f}). Weights cannot settle "
                    "that; methods that combine gradients may, see the page on TorchJD."
                )


def _skips(skipped: int, steps: int) -> Iterator[str]:
    if skipped:
        yield (
            f"{skipped:,} of {steps:,} updates were skipped, since a loss, its first value or a gradient norm was not "
            "a finite positive number."
        )


def _floor(tasks: Sequence[str], weights: Sequence[float], min_weight: float) -> Iterator[str]:
    for task, weight in zip(tasks, weights, strict=True):
        if weight <= 2 * min_weight:
            yield f'{task} sits at min_weight: take update="closed-form", divide its loss, or lower alpha.'


def _stuck(tasks: Sequence[str], series: Mapping[str, Mapping[str, list[float]]]) -> Iterator[str]:
    for task in tasks:
        loss, weight = series[task]["loss"], series[task]["weight"]
        if len(loss) >= 20 and loss[-1] > 0.9 * loss[0] and weight[-1] > 1.5 * weight[0]:
            yield (
                f"{task}'s loss is at {loss[-1] / loss[0]:.0%} of its first while its weight has gone from "
                f"{weight[0]:.2g} to {weight[-1]:.2g}: a stuck task gets an ever larger weight, a limit that the paper "
                "names. Look at the task itself."
            )


def _settled(tasks: Sequence[str], series: Mapping[str, Mapping[str, list[float]]]) -> Iterator[str]:
    traces = {task: series[task]["weight"] for task in tasks if len(series[task]["weight"]) >= 20}
    if not traces:
        return
    moves = {task: _move(trace) for task, trace in traces.items()}
    task = max(moves, key=lambda name: abs(moves[name]))
    if abs(moves[task]) > 0.1:
        yield f"The weights are still moving: {task}'s by {moves[task]:+.0%} over the last tenth of the steps at hand."
    else:
        yield "The weights have settled: over the last tenth of the steps at hand none has changed by more than 10%."


def _move(trace: Sequence[float]) -> float:
    """The relative change between the means of the last two tenths."""
    tenth = len(trace) // 10
    last, before = sum(trace[-tenth:]) / tenth, sum(trace[-2 * tenth : -tenth]) / tenth
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


def _mean_cosines(history: History) -> Tensor | None:
    """[T, T] over the steps at hand."""
    rows = history.cosines()
    if not rows:
        return None
    place = {task: i for i, task in enumerate(history.tasks)}
    table = torch.eye(len(place))
    for first in place:
        for second in place:
            found = [float(row["cosine"]) for row in rows if (row["first"], row["second"]) == (first, second)]
            if found:
                table[place[first], place[second]] = table[place[second], place[first]] = torch.tensor(found).nanmean()
    return table


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
        cells = {task: [f"{value:.2f}" for value in table[:, i].tolist()] for i, task in enumerate(tasks)}
        parts.append(_table({"cosine": list(tasks), **cells}))
    parts.append("\n".join(line for sentence in advice for line in wrap(sentence, "- ")))
    return "\n\n".join(part for part in parts if part)


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    padded = []
    for i, (name, cells) in enumerate(columns.items()):
        width = max(map(len, (name, *cells)))
        padded.append([cell.rjust(width) if i else cell.ljust(width) for cell in (name, *cells)])
    return "\n".join("  ".join(row) for row in zip(*padded, strict=True))


def wrap(text: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(text, 88, initial_indent=bullet, subsequent_indent=" " * len(bullet))
