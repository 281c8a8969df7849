"""Where the tasks meet: one traversal of the autograd graph of the losses.

A node that one loss alone reaches belongs to that task; a node that several reach is shared, and so is everything
below it. The edges from a task's own nodes into shared nodes that lead to `W` are the **frontier**. The gradient on
such an edge in the user's backward is that task's contribution alone, which is all that the measurement needs
(`_hooks.py`); this holds for any graph, however its tasks are connected. A task whose loss itself is shared has no
nodes of its own: its frontier is the loss.

Nodes that connect tasks without mixing them are skipped (`_collectors.py`); without that the result would be the same,
at the cost of a backward per task.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from .._torch_private import output_shape
from ._collectors import COLLECTING, Edge, origin
from ._operations import Path, kind
from ._penalties import uses


def _leaf_type() -> type:
    return type(get_gradient_edge(torch.ones((), requires_grad=True)).node)


AccumulateGrad = _leaf_type()
"""Type of the nodes that accumulate into `.grad`; each has the leaf as `.variable`."""


class FrontierEdge(NamedTuple):
    """An edge from its upper end: gradient `slot` of what a node returns goes to output `nr` of `to`."""

    to: Any
    slot: int
    nr: int
    is_direct: bool = True
    """`False` where collecting nodes lie between, so that the gradient may have another shape at the lower end."""


@dataclass
class TaskFrontier:
    """All frontier edges of one task into one shared node, `at`; `root` is set where the loss itself is shared.

    `path` is the kind of the functions from `at` to `W`, `whole` of those from the loss.
    """

    task: int
    at: Any
    path: Path
    edges: list[tuple[Any, FrontierEdge]] = field(default_factory=list)
    root: Edge | None = None
    whole: Path = Path.OWN

    @property
    def outputs(self) -> set[int]:
        """The numbers of the outputs of `at` that the task reads."""
        return {edge.nr for _, edge in self.edges} | ({self.root.nr} if self.root else set())

    def entries(self) -> int:
        """Number of gradient entries on the frontier; a ragged dimension counts as one."""
        shapes = [output_shape(self.at, nr) for nr in self.outputs]
        return sum(math.prod(n for n in shape if isinstance(n, int)) for shape in shapes)


class AutogradGraph:
    """The nodes below the losses, each with the set of tasks that reach it, as a bit mask.

    Traversed in every forward, so the many leaves are kept out of the traversal: their readers record them.

    Args:
        losses: Losses, or the edges into them.
        opaque: Collecting nodes not to skip.

    Attributes:
        losses: The edge into each loss, where a backward of that loss alone begins.
        roots: The same after collecting nodes; `None` for a loss that is a constant.
        children_first: The nodes, each after all that it leads to.
        inner: The edges of each node to others.
        ends: The edges of each node to leaves, for nodes that have any.
        tasks: The mask of each node; bit i is the i-th loss.
    """

    def __init__(self, losses: Sequence[Tensor | Edge], opaque: Collection[Any] = ()) -> None:
        self.losses = [loss if isinstance(loss, Edge) else Edge(*get_gradient_edge(loss)[:2]) for loss in losses]
        self._opaque = opaque
        self._passed_by: set[Any] = set()
        self.roots = [origin(edge, opaque, self._passed_by) for edge in self.losses]
        self.inner: dict[Any, list[FrontierEdge]] = {}
        self.ends: dict[Any, list[FrontierEdge]] = {}
        self.children_first = self._walk()
        self.tasks = self._reached_by()

    @functools.cached_property
    def leaves(self) -> dict[Tensor, list[Any]]:
        """The leaves, each with the nodes that read it, in the order of the forward."""
        found: dict[Tensor, list[Any]] = {}
        for node in self.children_first:
            for edge in self.ends.get(node, ()):
                found.setdefault(edge.to.variable, []).append(node)
        return found

    @functools.cached_property
    def uses(self) -> dict[Any, int]:
        """For each node that reads leaves the mask of the losses that use them, not for a penalty alone."""
        if all(len(nodes) == 1 for nodes in self.leaves.values()):  # as without penalties, in most networks
            return self.tasks
        return uses(self.children_first, self.inner, self.ends, self.tasks)

    @property
    def everyone(self) -> int:
        """The mask of all losses."""
        return (1 << len(self.losses)) - 1

    def reach(self, leaf: Tensor, by: Mapping[Any, int] | None = None) -> int:
        """The mask of the losses that reach a leaf; by `uses` of those that use it."""
        mask = 0
        for node in self.leaves.get(leaf, ()):
            mask |= (self.tasks if by is None else by)[node]
        return mask

    def unmixed(self) -> AutogradGraph:
        """The graph that frontiers are of: a collection that is also read as a whole is a node, as it mixes tasks."""
        mixing = self._passed_by & self.inner.keys()
        return AutogradGraph(self.losses, {*self._opaque, *mixing}).unmixed() if mixing else self

    def frontiers(self, shared: Sequence[Tensor]) -> list[TaskFrontier]:
        """The frontier before `shared` (`W`), grouped by task and shared node."""
        if (unmixed := self.unmixed()) is not self:
            return unmixed.frontiers(shared)
        wanted = {id(tensor) for tensor in shared}
        tasks, inner, ends = self.tasks, self.inner, self.ends
        leads: dict[Any, Path] = {}
        found: dict[tuple[int, Any], TaskFrontier] = {}
        for node in self.children_first:
            on_the_way = [edge for edge in inner[node] if edge.to in leads]
            if node in ends:
                on_the_way += [edge for edge in ends[node] if id(edge.to.variable) in wanted]
            if not on_the_way:
                continue
            path = kind(node)
            for edge in on_the_way:
                if (below := leads.get(edge.to, path)) > path:
                    path = below
            leads[node] = path
            mask = tasks[node]
            if mask & (mask - 1):  # several tasks
                continue
            for edge in on_the_way:
                if tasks.get(edge.to) != mask:
                    key = mask.bit_length() - 1, edge.to
                    if key not in found:
                        found[key] = TaskFrontier(*key, leads.get(edge.to, Path.OWN))
                    found[key].edges.append((node, edge))
        for task, root in enumerate(self.roots):
            if root is not None and root.node in leads and tasks[root.node].bit_count() > 1:
                found[task, root.node] = TaskFrontier(task, root.node, leads[root.node], root=root)
        for frontier in found.values():
            root = self.roots[frontier.task]
            assert root is not None
            frontier.whole = leads[root.node]
        return list(found.values())

    def _walk(self) -> list[Any]:
        """Every inner node once, children before parents; iterative, as graphs are deeper than Python's stack."""
        inner = self.inner
        order: list[Any] = []
        pending: list[Any] = [root.node for root in self.roots if root is not None]
        while pending:
            node = pending[-1]
            if node is None:  # all below the one before is in
                pending.pop()
                order.append(pending.pop())
            elif node in inner:
                pending.pop()
            else:
                inner[node] = edges = self._expand(node)
                pending.append(None)
                pending += [edge.to for edge in reversed(edges) if edge.to not in inner]
        return order

    def _expand(self, node: Any) -> list[FrontierEdge]:
        """The edges of `node` to inner nodes; notes those to leaves."""
        inner: list[FrontierEdge] = []
        ends: list[FrontierEdge] = []
        for slot, (child, nr) in enumerate(node.next_functions):
            if child is None:
                continue
            child_type = type(child)
            if child_type is AccumulateGrad:
                ends.append(FrontierEdge(child, slot, nr))
            elif child_type.__name__ not in COLLECTING:
                inner.append(FrontierEdge(child, slot, nr))
            elif (end := origin(Edge(child, nr), self._opaque, self._passed_by)) is not None:
                edge = FrontierEdge(end.node, slot, end.nr, end.node is child)
                (ends if type(end.node) is AccumulateGrad else inner).append(edge)
        if ends:
            self.ends[node] = ends
        return inner

    def _reached_by(self) -> dict[Any, int]:
        masks = dict.fromkeys(self.children_first, 0)
        for task, root in enumerate(self.roots):
            if root is not None:
                masks[root.node] |= 1 << task
        for node in reversed(self.children_first):
            mask = masks[node]
            for edge in self.inner[node]:
                masks[edge.to] |= mask
        return masks
