"""Where the tasks meet: one walk over the autograd graph of the losses.

A node that one loss alone reaches belongs to that task; a node that several reach is shared, and so is everything
below it. The edges from a task's own nodes into shared nodes that lead to `W` are the **frontier**. What flows over such
an edge in the user's backward is that task's contribution and nobody else's, which is all that the measurement needs
(`_measure.py`); this holds for any graph, however its tasks are tied together. A task whose loss itself is shared has no
nodes of its own: its frontier is the loss.

Some nodes join tasks without mixing them (a stack of losses, DDP's sink). They are looked through, edge by edge; without
that the result would be the same, at the cost of a backward per task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge


def _leaf_type() -> type:
    return type(get_gradient_edge(torch.ones((), requires_grad=True)).node)


AccumulateGrad = _leaf_type()
"""The type of the nodes at which gradients end up in `.grad`; each has the leaf as `.variable`."""


class Edge(NamedTuple):
    """Into which node, and into which of its outputs' gradients."""

    node: Any  # a torch.autograd.graph.Node, whose generated attributes (`_saved_dim`, `variable`) no stub declares
    nr: int


class Crossing(NamedTuple):
    """A frontier edge: gradient `slot` of what `node` returns goes to output `nr` of the meeting node."""

    node: Node
    slot: int
    nr: int


@dataclass
class Meeting:
    """All frontier edges of one task into one shared node."""

    task: int
    node: Any
    crossings: list[Crossing] = field(default_factory=list)
    root: Edge | None = None  # set where the loss itself is shared


class Graph:
    """The nodes below the losses, each with the set of tasks that reach it, as a bit mask."""

    def __init__(self, losses: Sequence[Tensor]) -> None:
        self.roots = [_through_joints(Edge(*get_gradient_edge(loss)[:2])) for loss in losses]
        self.edges: dict[Any, tuple[Edge | None, ...]] = {}
        self._children_first = self._walk()
        self.tasks = self._reached_by()

    def _walk(self) -> list[Any]:
        """Every node once, children before parents; iterative, because graphs are deeper than Python's stack."""
        order: list[Any] = []
        pending: list[Any] = [root.node for root in self.roots]
        finished: set[Any] = set()
        while pending:
            node = pending[-1]
            if node not in self.edges:
                self.edges[node] = edges = _edges(node)
                pending.extend(edge.node for edge in edges if edge is not None and edge.node not in self.edges)
                continue
            pending.pop()
            if node not in finished:
                finished.add(node)
                order.append(node)
        return order

    def _reached_by(self) -> dict[Any, int]:
        masks = dict.fromkeys(self._children_first, 0)
        for task, root in enumerate(self.roots):
            masks[root.node] |= 1 << task
        for node in reversed(self._children_first):
            mask = masks[node]
            for edge in self.edges[node]:
                if edge is not None:
                    masks[edge.node] |= mask
        return masks

    def uses(self) -> Iterator[tuple[Any, Any]]:
        """Each pair of a node and a leaf's node that it leads straight into."""
        for node, edges in self.edges.items():
            for edge in edges:
                if edge is not None and type(edge.node) is AccumulateGrad:
                    yield node, edge.node

    def meetings(self, shared: Sequence[Tensor]) -> list[Meeting]:
        """The frontier before `shared` (`W`), grouped by task and shared node."""
        ends = self._ends(shared)
        leads = self._leads_to(ends)
        several = {node: mask & (mask - 1) != 0 for node, mask in self.tasks.items()}
        found: dict[tuple[int, Any], Meeting] = {}
        for node, edges in self.edges.items():
            if several[node]:
                continue
            for slot, edge in enumerate(edges):
                if edge is None or not leads[edge.node] or not (several[edge.node] or edge.node in ends):
                    continue
                task = self.tasks[node].bit_length() - 1
                meeting = found.setdefault((task, edge.node), Meeting(task, edge.node))
                meeting.crossings.append(Crossing(node, slot, edge.nr))
        for task, root in enumerate(self.roots):
            if leads[root.node] and (several[root.node] or root.node in ends):
                found[task, root.node] = Meeting(task, root.node, root=root)
        return list(found.values())

    def _ends(self, shared: Sequence[Tensor]) -> set[Any]:
        wanted = {id(tensor) for tensor in shared}
        return {node for node in self.edges if type(node) is AccumulateGrad and id(node.variable) in wanted}

    def _leads_to(self, ends: set[Any]) -> dict[Any, bool]:
        leads: dict[Any, bool] = {}
        for node in self._children_first:
            leads[node] = node in ends or any(edge is not None and leads[edge.node] for edge in self.edges[node])
        return leads


def _edges(node: Any) -> tuple[Edge | None, ...]:
    return tuple(None if child is None else _through_joints(Edge(child, nr)) for child, nr in node.next_functions)


def _through_joints(edge: Edge) -> Edge:
    """`edge`, moved past nodes that hand each of their inputs on unmixed."""
    while (beyond := _beyond_joint(edge)) is not None:
        edge = beyond
    return edge


def _beyond_joint(edge: Edge) -> Edge | None:
    name = edge.node.name()
    if name == "_DDPSinkBackward":
        return _next(edge.node, edge.nr)
    if name == "UnbindBackward0":
        return _out_of_stack(edge.node, edge.nr)
    if name == "SelectBackward0":
        return _out_of_stack(edge.node, edge.node._saved_index)
    return None


def _out_of_stack(node: Any, index: int) -> Edge | None:
    """Entry `index` of what `node` takes apart along its first dimension, if that is a stack along the same one."""
    stack = node.next_functions[0][0]
    if stack is None or stack.name() != "StackBackward0" or stack._saved_dim != 0 or node._saved_dim != 0:
        return None
    inputs = len(stack.next_functions)
    return _next(stack, index if index < inputs else index - 2**64 + inputs)


def _next(node: Any, index: int) -> Edge | None:
    child, nr = node.next_functions[index]
    return None if child is None else Edge(child, nr)
