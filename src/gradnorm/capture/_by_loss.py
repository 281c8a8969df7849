"""Where tasks meet in many places, as with heads at every step of an unrolled recurrence.

A product from each such place to `W` would run what lies below once per place: quadratically many functions. There a
backward of each loss alone is cheaper, before anything else runs, although it runs the heads as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._torch_private import without_hooks
from ._collectors import Edge
from ._graph import AutogradGraph, TaskFrontier
from ._looks import look
from ._operations import Path
from ._shared import is_distributed

FEWEST_PLACES = 8
"""With fewer, nothing is counted."""


def is_faster_by_loss(graph: AutogradGraph, frontiers: Sequence[TaskFrontier], shared: Sequence[Tensor]) -> bool:
    """Whether a backward of each loss runs fewer functions than the products from all places where tasks meet."""
    if len({frontier.at for frontier in frontiers}) < FEWEST_PLACES or any(map(is_distributed, shared)):
        return False
    if any(frontier.whole is Path.FOREIGN for frontier in frontiers):  # which may be able to run only once
        return False
    below = _functions_below(graph.unmixed(), shared)
    by_products = sum(below.get(frontier.at, 0).bit_count() for frontier in frontiers)
    by_loss = sum(below.get(root.node, 0).bit_count() for root in graph.roots if root is not None)
    return by_loss < by_products


def _functions_below(graph: AutogradGraph, shared: Sequence[Tensor]) -> dict[Any, int]:
    """The functions that a backward from each node to `W` runs, as a bit mask."""
    wanted = set(map(id, shared))
    below: dict[Any, int] = {}
    for i, node in enumerate(graph.children_first):
        mask = 0
        for edge in graph.inner[node]:
            mask |= below.get(edge.to, 0)
        if mask or any(id(edge.to.variable) in wanted for edge in graph.ends.get(node, ())):
            below[node] = mask | 1 << i
    return below


def gradients_by_loss(
    losses: Sequence[Edge], shared: Sequence[Tensor], factors: Sequence[Tensor]
) -> list[Sequence[Tensor | None]]:
    """The gradient of each loss, times its factor, at each tensor of `W`.

    Raises:
        RuntimeError: Autograd refuses it.
    """
    with without_hooks(shared):
        return [look([loss], shared, [factor]) for loss, factor in zip(losses, factors, strict=True)]
