"""Diagnosis before training, from the losses of one batch: which layer is shared, and which task dominates there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import _html
from ._advice import bad_numbers, cells, conflicts, dominance, evenness, page, wrap
from ._arguments import check_graphs, parse_losses, parse_tasks
from ._errors import GraphError
from ._numerics import at_least_float32, cosines, row_norms
from ._torch_private import without_hooks
from ._types import Losses, Shared
from .capture import (
    AutogradGraph,
    DetectedLayer,
    NamedLayer,
    SharedParameter,
    entry_count,
    flat,
    heads_among,
    refusal,
    resolve_shared,
    without_gradient,
)

MOST_OTHERS = 8
"""More layers than this are counted in the text."""


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of one batch; `print` it. T is the number of tasks.

    Attributes:
        tasks: Task names.
        losses: [T], `L_i`.
        norms: [T], `‖∇_W L_i‖` of the unweighted losses.
        cosines: [T, T], between the tasks' gradients at `W`; NaN beside a gradient that is zero.
        layer: `W`, by name where the model was given, and its shape.
        entries: Number of entries of `W`.
        others: The other layers that all tasks reach, in the order of the forward.
        findings: Sentences about what is as it should be.
        advice: Sentences about what to act on; empty where nothing is wrong.
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
        """The largest gradient norm over the smallest nonzero one; NaN where a norm is not finite."""
        positive = self.norms[self.norms != 0]
        return (positive.max() / positive.min()).item() if len(positive) else math.nan

    @property
    def findings(self) -> list[str]:
        """Sentences about what is as it should be: how even the gradients are."""
        return list(evenness(self.tasks, self.norms.tolist()))

    @property
    def advice(self) -> list[str]:
        """Sentences about what to act on: what is wrong, which task dominates, which tasks conflict."""
        losses, norms = self.losses.tolist(), self.norms.tolist()
        return [
            *bad_numbers(self.tasks, losses, norms),
            *dominance(self.tasks, norms),
            *conflicts(self.tasks, self.cosines),
        ]

    @property
    def _columns(self) -> dict[str, list[str]]:
        usable = self.norms[(self.norms > 0) & self.norms.isfinite()]
        smallest = usable.min() if len(usable) else self.norms.new_tensor(torch.nan)
        numbers = {"loss": self.losses, "gradient norm": self.norms, "× smallest": self.norms / smallest}
        return {name: cells(values) for name, values in numbers.items()}

    def _repr_html_(self) -> str:
        beside = {"gradient norm": _html.bars(self.norms.tolist())}
        parts = [
            _html.table({"task": self.tasks, **self._columns}, beside),
            _html.matrix("cosine", self.tasks, self.cosines.tolist()),
        ]
        title = f"Shared layer: {self.layer}, {self.entries:,} numbers"
        return _html.document(title, parts, [*self.advice, *self.findings])

    def __str__(self) -> str:
        lines = [f"Shared layer: {self.layer}, {self.entries:,} numbers"]
        if self.others:
            more = f" and {len(self.others) - MOST_OTHERS} before" if len(self.others) > MOST_OTHERS else ""
            lines += wrap(f"Other layers that all tasks reach: {', '.join(self.others[-MOST_OTHERS:])}{more}")
        return page(lines, self.tasks, self._columns, self.cosines, [*self.advice, *self.findings])


def diagnose(losses: Losses, *, shared: Shared | None = None, model: nn.Module | None = None) -> Diagnosis:
    """Diagnose the losses of one batch, before any training.

    The graph is kept: `backward` may follow. It costs one gradient of `W` per task.

    Args:
        losses: Scalars by name, in order, or stacked into a [T] tensor; tasks that are `None` are ignored.
        shared: `W`, as for `GradNorm`. Default: the last shared layer.
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
        cosines=cosines(rows @ rows.T, norms),
        layer=", ".join(NamedLayer(parts, names).described),
        entries=sum(map(entry_count, (each.parameter for each in parts))),
        others=tuple(NamedLayer(others, names).described),
    )


# --------------------------------------------------------------------------------------------------------- measuring


def _named(losses: Losses) -> dict[str, Tensor]:
    if isinstance(losses, Mapping):
        tasks = parse_tasks(losses)
    else:  # what has no length is refused by parse_losses
        tasks = parse_tasks(len(losses) if isinstance(losses, Sequence) or getattr(losses, "ndim", 0) == 1 else 2)
    parsed = parse_losses(losses, tasks)
    return {task: loss for task, loss in zip(tasks, parsed, strict=True) if loss is not None}


def _detect(
    named: Mapping[str, Tensor], graph: AutogradGraph, layer: DetectedLayer
) -> tuple[Sequence[SharedParameter], Tensor]:
    """The shared layer and the gradients there, [T, N]; while it is without any, the next ones that have some."""
    found = _above_heads(named, graph, layer, layer.locate(graph, range(len(named))))
    if bool(found[1].any()):
        return found
    candidates = layer.within_reach(graph, found[0])
    with without_hooks(candidates):
        gradients = torch.autograd.grad(list(named.values()), candidates, retain_graph=True, allow_unused=True)
    with layer.provisionally():
        further = layer.look_further_up(graph, without_gradient(candidates, gradients))
        return _above_heads(named, graph, layer, further) if further else found


def _above_heads(
    named: Mapping[str, Tensor], graph: AutogradGraph, layer: DetectedLayer, parts: Sequence[SharedParameter]
) -> tuple[Sequence[SharedParameter], Tensor]:
    """These, or the layers before them while they are heads; where all layers are, these."""
    rows = _rows(named, parts)
    first = parts, rows
    while heads := heads_among(rows, parts):
        if not (parts := layer.look_further_up(graph, heads)):
            return first
        rows = _rows(named, parts)
    return parts, rows


def _rows(named: Mapping[str, Tensor], parts: Sequence[SharedParameter]) -> Tensor:
    """[T, N], the gradient of each loss at `W`, on the CPU, where it is read."""
    return torch.stack([_row(task, loss, [part.used for part in parts]) for task, loss in named.items()]).cpu()


def _row(task: str, loss: Tensor, used: Sequence[Tensor]) -> Tensor:
    """[N], the gradient of one loss at `W`."""
    try:
        with without_hooks(used):
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
