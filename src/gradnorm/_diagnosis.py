"""What to know before and during training: which layer is shared, which task dominates there, and what to do about it.

`diagnose` looks at the losses of one batch, before anything is trained; `describe` at what a balancer has recorded.
Both end in plain sentences.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._arguments import check_graphs, parse_losses, parse_tasks
from ._errors import GraphError
from ._history import FIELDS, History
from ._numerics import at_least_float32, cosines, row_norms
from ._types import Losses, Shared
from ._updates import LR
from .capture import (
    AutogradGraph,
    DetectedLayer,
    NamedLayer,
    SharedParameter,
    flat,
    heads_among,
    refusal,
    resolve_shared,
)

EVEN = 2.0
"""Gradients within this factor are about even."""
DOMINANT = 10.0
"""From this factor on one task trains the shared layers almost alone."""
LEAST = LR
"""A step of the default optimizer of the weights, which cannot hold a weight below it steadily."""
CONFLICT = -0.3
"""Below this cosine two tasks pull against each other."""


@dataclass(frozen=True)
class Diagnosis:
    """What one batch shows; `print` it. T is the number of losses.

    Attributes:
        tasks: Their names.
        losses: [T].
        norms: [T], `‖∇_W L_i‖` of the unweighted losses.
        cosines: [T, T], between the tasks' gradients at `W`; NaN beside a gradient that is zero.
        layer: `W`, by name where the model was given, and its shape.
        entries: How many numbers `W` holds.
        others: The other layers that all tasks reach, in the order of the forward.
        advice: Plain sentences.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    norms: Tensor
    cosines: Tensor
    layer: str
    entries: int
    others: tuple[str, ...]

    @property
    def dominance(self) -> float:
        """The largest gradient norm over the smallest that is not zero; NaN where a norm is not finite."""
        positive = self.norms[self.norms != 0]
        return (positive.max() / positive.min()).item() if len(positive) else math.nan

    @property
    def advice(self) -> list[str]:
        """Plain sentences: what is wrong, who dominates, who pulls against whom."""
        return [*_bad_numbers(self), *_dominance(self), *_conflicts(self.tasks, self.cosines)]

    def __str__(self) -> str:
        smallest = self.norms[self.norms != 0].min() if self.norms.any() else torch.tensor(torch.nan)
        columns = {
            "loss": [f"{loss:.3g}" for loss in self.losses.tolist()],
            "gradient norm": [f"{norm:.3g}" for norm in self.norms.tolist()],
            "× smallest": [f"{ratio:.3g}" for ratio in (self.norms / smallest).tolist()],
        }
        lines = [f"Shared layer: {self.layer}, {self.entries:,} numbers"]
        if self.others:
            lines += _wrap(f"Other layers that all tasks reach: {', '.join(self.others)}")
        return _page(lines, self.tasks, columns, self.cosines, self.advice)


def diagnose(losses: Losses, *, shared: Shared | None = None, model: nn.Module | None = None) -> Diagnosis:
    """What GradNorm would see in these losses, of one batch, before any training.

    The graph stays as it is: `backward` may follow. It costs one gradient of `W` a task.

    Args:
        losses: Scalars by name, in order, or stacked into a [T] tensor; tasks that are `None` are passed over.
        shared: `W`, as for `GradNorm`; left out, the last shared layer.
        model: The network, for the names of its layers.

    Raises:
        ArgumentError: A loss is no scalar of a floating type, or `shared` cannot be used.
        GraphError: A loss without a graph, no shared layer, or a task that does not reach it.

    Examples:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
        >>> features = trunk(torch.randn(64, 8)).relu()
        >>> losses = {"near": heads[0](features).square().mean(), "far": (100 * heads[1](features)).square().mean()}
        >>> diagnosis = diagnose(losses, model=trunk)
        >>> diagnosis.layer
        'weight (4, 8)'
        >>> print(diagnosis.advice[0])  # doctest: +ELLIPSIS
        far's gradient is ... times that of near: with equal weights the shared layers train for far almost alone...
    """
    named = _named(losses)
    tasks, values = tuple(named), list(named.values())
    check_graphs(values, tasks)
    names = {parameter: name for name, parameter in model.named_parameters()} if model else {}
    detected = DetectedLayer(tasks, names)
    graph = AutogradGraph(values)
    if shared is None:
        parts, rows = _detect(named, graph, detected)
    else:
        parts = resolve_shared(shared, model)
        rows = _rows(named, parts)
        detected.locate(graph, range(len(tasks)))
    norms = row_norms(rows)
    taken = {each.parameter for each in parts}
    others = [SharedParameter(leaf, leaf) for leaf in detected.candidates(graph) if leaf not in taken]
    return Diagnosis(
        tasks=tasks,
        losses=at_least_float32(torch.stack([loss.detach() for loss in values]).cpu()),
        norms=norms,
        cosines=cosines(rows, norms),
        layer=", ".join(NamedLayer(parts, names).names),
        entries=sum(each.parameter.numel() for each in parts),
        others=tuple(NamedLayer(others, names).names),
    )


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
    return _page(lines, history.tasks, columns, table, [*advice, *_conflicts(history.tasks, table)])


# --------------------------------------------------------------------------------------------------------- measuring


def _named(losses: Losses) -> dict[str, Tensor]:
    if isinstance(losses, Mapping):
        tasks = parse_tasks(losses)
    else:  # what has no length is refused by parse_losses
        tasks = parse_tasks(len(losses) if isinstance(losses, Sequence) or losses.dim() == 1 else 2)
    parsed = parse_losses(losses, tasks)
    return {task: loss for task, loss in zip(tasks, parsed, strict=True) if loss is not None}


def _detect(
    named: Mapping[str, Tensor], graph: AutogradGraph, layer: DetectedLayer
) -> tuple[Sequence[SharedParameter], Tensor]:
    """The shared layer and the gradients there, [T, N]; where all layers turn out to be heads, the first."""
    parts = layer.locate(graph, range(len(named)))
    rows = _rows(named, parts)
    first = parts, rows
    while heads := heads_among(rows, parts):
        if not (parts := layer.look_further_up(graph, heads)):
            return first
        rows = _rows(named, parts)
    return parts, rows


def _rows(named: Mapping[str, Tensor], parts: Sequence[SharedParameter]) -> Tensor:
    """[T, N], the gradient of each loss at `W`; on the CPU, where all of it is read, printed and drawn."""
    return torch.stack([_row(task, loss, [part.used for part in parts]) for task, loss in named.items()]).cpu()


def _row(task: str, loss: Tensor, used: Sequence[Tensor]) -> Tensor:
    """[N], the gradient of one loss at `W`."""
    try:
        gradients = torch.autograd.grad(loss, used, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if (remedy := refusal(error)) is None:
            raise
        raise GraphError(remedy) from error
    if all(gradient is None for gradient in gradients):
        raise GraphError(
            f"the loss of task {task!r} does not reach the shared layer; "
            "give as shared a layer that all tasks use, or leave the task out of the balancer"
        )
    return flat(gradients, used)


# ------------------------------------------------------------------------------------------------------------ advice


def _bad_numbers(found: Diagnosis) -> Iterator[str]:
    for task, loss, norm in zip(found.tasks, found.losses.tolist(), found.norms.tolist(), strict=True):
        if not math.isfinite(loss) or not math.isfinite(norm):
            yield f"{task}: the loss is {loss:g} and its gradient norm {norm:g}. Mend that first."
        elif norm == 0:
            yield (
                f"{task}'s gradient is zero at this layer. Where its head starts at zero this passes; where the heads' "
                "outputs are concatenated before the losses, name the last shared layer with shared=."
            )
        if loss <= 0:
            yield (
                f"{task}'s loss is {loss:g}. GradNorm divides losses by their first value and needs positive ones: "
                "add a constant to it, or give initial_losses=."
            )


def _dominance(found: Diagnosis) -> Iterator[str]:
    usable = [(norm, task) for norm, task in zip(found.norms.tolist(), found.tasks, strict=True) if norm > 0]
    if len(usable) < 2 or not all(math.isfinite(norm) for norm, _ in usable):
        return
    (_, low), (_, high), ratio = min(usable), max(usable), found.dominance
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
            f"cannot hold it steadily: divide {high}'s loss by about {float(f'{ratio:.0e}'):,.0f} first, or lower lr=."
        )


def _conflicts(tasks: Sequence[str], table: Tensor | None) -> Iterator[str]:
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
            yield f"{task} sits at min_weight: divide its loss by a constant, or lower alpha or lr."


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


def _page(
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
    parts.append("\n".join(line for sentence in advice for line in _wrap(sentence, "- ")))
    return "\n\n".join(part for part in parts if part)


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    padded = []
    for i, (name, cells) in enumerate(columns.items()):
        width = max(map(len, (name, *cells)))
        padded.append([cell.rjust(width) if i else cell.ljust(width) for cell in (name, *cells)])
    return "\n".join("  ".join(row) for row in zip(*padded, strict=True))


def _wrap(text: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(text, 88, initial_indent=bullet, subsequent_indent=" " * len(bullet))
