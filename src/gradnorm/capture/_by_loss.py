"""Where tasks meet in many places, as with heads at every step of an unrolled recurrence.

A product from each such place to `W` would run what lies below once per place: quadratically many functions. There a
backward of each loss alone is cheaper, before anything else runs, although it runs the heads as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from .._torch_private import without_hooks
from ._collectors import Edge
from ._graph import AutogradGraph, TaskFrontier
from ._looks import look
from ._operations import Path

FEWEST_PLACES = 8
"""With fewer, nothing is counted."""
MOST_COUNTED = 4096
"""With more functions on the way to `W`, these are many in any case."""
PASSED_BY = 50
"""Autograd passes by so many functions, of those below, in the time in which it runs one."""


def is_faster_by_loss(graph: AutogradGraph, frontiers: Sequence[TaskFrontier], shared: Sequence[Tensor]) -> bool:
    """Whether a backward of each loss runs fewer functions than the products from all places where tasks meet."""
    if len({frontier.at for frontier in frontiers}) < FEWEST_PLACES:
        return False
    if any(frontier.whole is Path.FOREIGN for frontier in frontiers):  # which may be able to run only once
        return False
    graph = graph.unmixed()
    if (below := _functions_below(graph, shared)) is None:
        return True
    place = {node: i for i, node in enumerate(graph.children_first)}

    def cost(nodes: Iterable[Any]) -> float:
        return sum(below.get(node, 0).bit_count() + place.get(node, 0) / PASSED_BY for node in nodes)

    roots = [root.node for root in graph.roots if root is not None]
    return cost(roots) < cost(frontier.at for frontier in frontiers)


def _functions_below(graph: AutogradGraph, shared: Sequence[Tensor]) -> dict[Any, int] | None:
    """The functions that a backward from each node to `W` runs, as a bit mask; `None` where they are too many."""
    wanted = set(map(id, shared))
    below: dict[Any, int] = {}
    for node in graph.children_first:
        mask = 0
        for edge in graph.inner[node]:
            mask |= below.get(edge.to, 0)
        if mask or any(id(edge.to.variable) in wanted for edge in graph.ends.get(node, ())):
            below[node] = mask | 1 << len(below)
            if len(below) > MOST_COUNTED:
                return None
    return below


def gradients_of(
    losses: Sequence[Edge], shared: Sequence[Tensor], factors: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """The gradient of the sum of these losses, each times its factor, at each tensor of `W`.

    Raises:
        RuntimeError: Autograd refuses it.
    """
    with without_hooks(shared):
        return look(losses, shared, factors)
