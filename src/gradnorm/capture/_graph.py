"""Where the tasks meet: one walk over the autograd graph of the losses.

A node that one loss alone reaches belongs to that task; a node that several reach is shared, and so is everything
below it. The edges from a task's own nodes into shared nodes that lead to `W` are the **frontier**. What flows over
such an edge in the user's backward is that task's contribution and nobody else's, which is all that the measurement
needs (`_measure.py`); this holds for any graph, however its tasks are tied together. A task whose loss itself is shared
has no nodes of its own: its frontier is the loss.

Some nodes join tasks without mixing them (a stack of losses, DDP's sink). They are looked through, edge by edge;
without that the result would be the same, at the cost of a backward per task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge


def _leaf_type() -> type:
    return type(get_gradient_edge(torch.ones((), requires_grad=True)).node)


AccumulateGrad = _leaf_type()
"""The type of the nodes at which gradients end up in `.grad`; each has the leaf as `.variable`."""


class Edge(NamedTuple):
    """Into which node, and into which of its outputs' gradients."""

    node: Any  # a torch.autograd.graph.Node, whose generated attributes (`_saved_dim`, `variable`) no stub declares
    nr: int


class Crossing(NamedTuple):
    """An edge from its upper end: gradient `slot` of what a node returns goes to output `nr` of `to`."""

    to: Any
    slot: int
    nr: int


@dataclass
class Meeting:
    """All frontier edges of one task into one shared node, `at`; `root` is set where the loss itself is shared."""

    task: int
    at: Any
    crossings: list[tuple[Any, Crossing]] = field(default_factory=list)
    root: Edge | None = None


class Graph:
    """The nodes below the losses, each with the set of tasks that reach it, as a bit mask.

    Walked anew in every forward, so the many leaves are kept out of the walk: their readers note them.
    """

    def __init__(self, losses: Sequence[Tensor]) -> None:
        self.roots = [_through_joints(Edge(*get_gradient_edge(loss)[:2])) for loss in losses]
        self._inner: dict[Any, list[Crossing]] = {}
        self._leaves: dict[Any, list[Crossing]] = {}
        self._children_first = self._walk()
        self.tasks = self._reached_by()

    def readers(self) -> dict[Tensor, list[Any]]:
        """The nodes that read each leaf."""
        found: dict[Tensor, list[Any]] = {}
        for node, edges in self._leaves.items():
            for edge in edges:
                found.setdefault(edge.to.variable, []).append(node)
        return found

    def meetings(self, shared: Sequence[Tensor]) -> list[Meeting]:
        """The frontier before `shared` (`W`), grouped by task and shared node."""
        wanted = {id(tensor) for tensor in shared}
        several = {node for node, mask in self.tasks.items() if mask & (mask - 1)}
        leads: set[Any] = set()
        found: dict[tuple[int, Any], Meeting] = {}
        for node in self._children_first:
            ends = [edge for edge in self._leaves.get(node, ()) if id(edge.to.variable) in wanted]
            inner = [edge for edge in self._inner[node] if edge.to in leads]
            if not ends and not inner:
                continue
            leads.add(node)
            if node not in several:
                task = self.tasks[node].bit_length() - 1
                for edge in ends + [edge for edge in inner if edge.to in several]:
                    meeting = found.setdefault((task, edge.to), Meeting(task, edge.to))
                    meeting.crossings.append((node, edge))
        for task, root in enumerate(self.roots):
            if root.node in several and root.node in leads:
                found[task, root.node] = Meeting(task, root.node, root=root)
        return list(found.values())

    def _walk(self) -> list[Any]:
        """Every inner node once, children before parents; iterative, as graphs are deeper than Python's stack."""
        inner = self._inner
        order: list[Any] = []
        finished: set[Any] = set()
        pending: list[Any] = [root.node for root in self.roots]
        while pending:
            node = pending[-1]
            if node not in inner:
                inner[node] = edges = self._expand(node)
                pending.extend([edge.to for edge in edges if edge.to not in inner])
                continue
            pending.pop()
            if node not in finished:
                finished.add(node)
                order.append(node)
        return order

    def _expand(self, node: Any) -> list[Crossing]:
        """The edges of `node` to inner nodes; notes those to leaves."""
        inner: list[Crossing] = []
        for slot, (child, nr) in enumerate(node.next_functions):
            if child is None:
                continue
            if type(child).__name__ in _JOINTS:
                child, nr = _through_joints(Edge(child, nr))
            if type(child) is AccumulateGrad:
                self._leaves.setdefault(node, []).append(Crossing(child, slot, nr))
            else:
                inner.append(Crossing(child, slot, nr))
        return inner

    def _reached_by(self) -> dict[Any, int]:
        masks = dict.fromkeys(self._children_first, 0)
        for task, root in enumerate(self.roots):
            masks[root.node] |= 1 << task
        for node in reversed(self._children_first):
            mask = masks[node]
            for edge in self._inner[node]:
                masks[edge.to] |= mask
        return masks


def _through_joints(edge: Edge) -> Edge:
    """`edge`, moved past nodes that hand each of their inputs on unmixed."""
    while (beyond := _beyond_joint(edge)) is not None:
        edge = beyond
    return edge


def _beyond_joint(edge: Edge) -> Edge | None:
    beyond = _JOINTS.get(type(edge.node).__name__)
    return None if beyond is None else beyond(edge)


def _out_of_stack(node: Any, index: int) -> Edge | None:
    """Entry `index` of what `node` takes apart along its first dimension, if that is a stack along the same one."""
    stack = node.next_functions[0][0]
    if type(stack).__name__ != "StackBackward0" or stack._saved_dim != 0 or node._saved_dim != 0:
        return None
    inputs = len(stack.next_functions)
    # Autograd keeps a negative index as an unsigned one.
    return _next(stack, index if index < inputs else index - 2**64 + inputs)


def _next(node: Any, index: int) -> Edge | None:
    child, nr = node.next_functions[index]
    return None if child is None else Edge(child, nr)


_JOINTS: dict[str, Callable[[Edge], Edge | None]] = {
    "_DDPSinkBackward": lambda edge: _next(edge.node, edge.nr),
    "UnbindBackward0": lambda edge: _out_of_stack(edge.node, edge.nr),
    "SelectBackward0": lambda edge: _out_of_stack(edge.node, edge.node._saved_index),
}
"""What lies beyond an edge into such a node; `None` where it mixes after all."""
