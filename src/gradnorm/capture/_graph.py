"""Where the tasks meet: one walk over the autograd graph of the losses.

A node that one loss alone reaches belongs to that task; a node that several reach is shared, and so is everything
below it. The edges from a task's own nodes into shared nodes that lead to `W` are the **frontier**. What flows over
such an edge in the user's backward is that task's contribution and nobody else's, which is all that the measurement
needs (`_hooks.py`); this holds for any graph, however its tasks are tied together. A task whose loss itself is shared
has no nodes of its own: its frontier is the loss.

Nodes that tie tasks together without mixing them are looked through (`_collectors.py`); without that the result would
be the same, at the cost of a backward per task.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

from .._torch_private import output_shape
from ._collectors import COLLECTING, Edge, origin


def _leaf_type() -> type:
    return type(get_gradient_edge(torch.ones((), requires_grad=True)).node)


AccumulateGrad = _leaf_type()
"""The type of the nodes at which gradients end up in `.grad`; each has the leaf as `.variable`."""


_PRODUCTS = re.compile("mm|conv|linear", re.IGNORECASE)
"""Nodes of a layer's product with its input, which comes first; `bmm` is one of two inputs."""
_AFFINE = re.compile("addmm|conv|linear", re.IGNORECASE)
"""Those of them that are certainly a layer's: `mm` may be of two inputs, as in contrastive losses."""
_LOOKUPS = re.compile("bmm|embedding|index|gather|rnn|lstm|gru|attention", re.IGNORECASE)
"""Other nodes whose output is no parameter any more, whatever it is made of."""


def _is_product(node: Any) -> bool:
    """Whether a layer ends here: a product, a lookup, a function that is not torch's."""
    name = type(node).__name__
    return isinstance(node, BackwardCFunction) or bool(_PRODUCTS.search(name) or _LOOKUPS.search(name))


def _makes_weight(node: Any, operands: Mapping[int, _Made]) -> bool:
    """Whether a product is of parameters alone, and so the weight of a layer to come; a layer's own has a bias."""
    plain = all(made.is_plain for made in operands.values())
    return (
        plain and len(operands) > 1 and "mm" in type(node).__name__.lower() and not _AFFINE.search(type(node).__name__)
    )


class _Made(NamedTuple):
    """What a tensor is made of: candidates, and whether by nothing but elementwise operations on them."""

    bits: int
    is_plain: bool


def _layers(node: Any, operands: Mapping[int, _Made], is_root: bool) -> int:
    """Which candidates are the layer that is applied at a node, and not its input; `operands` are by slot."""
    if not operands:
        return 0
    name = type(node).__name__
    last = operands[max(operands)]
    plain = _union(made.bits for made in operands.values() if made.is_plain)
    if not _is_product(node):  # a parameter that is added to an input, say
        return plain if is_root or not all(made.is_plain for made in operands.values()) else 0
    if _LOOKUPS.search(name) or not _PRODUCTS.search(name):
        return plain
    if _makes_weight(node, operands):
        return 0
    if plain or not _AFFINE.search(name):
        return last.bits if last.is_plain else plain
    others = _union(made.bits for slot, made in operands.items() if slot != max(operands))
    return last.bits & ~others if others else 0  # a computed weight, unless it is the only operand


def _union(masks: Iterable[int]) -> int:
    return functools.reduce(operator.or_, masks, 0)


class FrontierEdge(NamedTuple):
    """An edge from its upper end: gradient `slot` of what a node returns goes to output `nr` of `to`."""

    to: Any
    slot: int
    nr: int
    is_direct: bool = True
    """`False` where collecting nodes lie between, so that the gradient may have another shape at the lower end."""


@dataclass
class TaskFrontier:
    """All frontier edges of one task into one shared node, `at`; `root` is set where the loss itself is shared."""

    task: int
    at: Any
    edges: list[tuple[Any, FrontierEdge]] = field(default_factory=list)
    root: Edge | None = None

    def entries(self) -> int:
        """How many numbers flow over the frontier."""
        numbers = {edge.nr for _, edge in self.edges} | ({self.root.nr} if self.root else set())
        return sum(output_shape(self.at, nr).numel() for nr in numbers)


class AutogradGraph:
    """The nodes below the losses, each with the set of tasks that reach it, as a bit mask.

    Walked in every forward, so the many leaves are kept out of the walk: their readers note them.

    Args:
        losses: Losses, or the edges into them.
        opaque: Collecting nodes not to look through.

    Attributes:
        losses: The edge into each loss, where a backward of that loss alone begins.
        tasks: The mask of each inner node; bit i is the i-th loss.
    """

    def __init__(self, losses: Sequence[Tensor | Edge], opaque: Collection[Any] = ()) -> None:
        self.losses = [loss if isinstance(loss, Edge) else Edge(*get_gradient_edge(loss)[:2]) for loss in losses]
        self._opaque = opaque
        self._passed_by: set[Any] = set()
        self._roots = [origin(edge, opaque, self._passed_by) for edge in self.losses]
        self._inner: dict[Any, list[FrontierEdge]] = {}
        self._leaves: dict[Any, list[FrontierEdge]] = {}
        self._children_first = self._walk()
        self.tasks = self._reached_by()

    @functools.cached_property
    def leaves(self) -> dict[Tensor, list[Any]]:
        """The leaves, each with the nodes that read it, in the order of the forward."""
        found: dict[Tensor, list[Any]] = {}
        for node in self._children_first:
            for edge in self._leaves.get(node, ()):
                found.setdefault(edge.to.variable, []).append(node)
        return found

    @property
    def everyone(self) -> int:
        """The mask of all losses."""
        return (1 << len(self.losses)) - 1

    def reach(self, leaf: Tensor) -> int:
        """The mask of the losses that reach a leaf."""
        mask = 0
        for node in self.leaves.get(leaf, ()):
            mask |= self.tasks[node]
        return mask

    def last(self, candidates: Sequence[Tensor], passed_over: Sequence[Tensor] = ()) -> list[Tensor]:
        """Those of the leaves that no other of them follows on the way to the losses, in the order of the forward.

        A layer that is used several times counts where most losses depend on it: a head may use tied weights once more.
        Where no place is common to all, as with a forward per loss, first uses count: in the graph of a gradient every
        layer is used once more, in reverse.

        Args:
            candidates: The leaves.
            passed_over: Leaves that are none of them, but make weights together with them.
        """
        eligible = (1 << len(candidates)) - 1
        applied = self._first_uses(self._applied([*candidates, *passed_over], eligible))
        above = dict.fromkeys(self._children_first, 0)
        last = 0
        for node in reversed(self._children_first):
            mine, followers = applied[node] & eligible, above[node]
            if not followers & ~mine:
                last |= mine
            for edge in self._inner[node]:
                above[edge.to] |= followers | mine
        return [leaf for i, leaf in enumerate(candidates) if last >> i & 1]

    def _first_uses(self, applied: dict[Any, int]) -> dict[Any, int]:
        """`applied`, without the later uses of candidates that are nowhere used for all losses."""
        common = _union(bits for node, bits in applied.items() if self.tasks[node] == self.everyone)
        below: dict[Any, int] = {}
        first: dict[Any, int] = {}
        for node in self._children_first:
            before = _union(below[edge.to] for edge in self._inner[node])
            first[node] = applied[node] & (common | ~before)
            below[node] = before | applied[node]
        return first

    def _applied(self, leaves: Sequence[Tensor], eligible: int) -> dict[Any, int]:
        """The nodes at which layers are applied to their inputs, each with the leaves there, as a bit mask.

        On its way there a parameter may be transposed, cast, normalized or multiplied with others.
        """
        read = self._read(leaves)
        made_of: dict[Any, _Made] = {}
        applied: dict[Any, int] = {}
        roots = {root.node for root in self._roots if root is not None}
        for node in self._children_first:
            operands = {slot: _Made(bit, is_plain=True) for slot, bit in read.get(node, ())}
            operands |= {edge.slot: made_of[edge.to] for edge in self._inner[node] if made_of[edge.to].bits}
            if type(node).__name__ == "CompiledFunctionBackward":  # the order inside does not show: what it takes last
                operands = dict(sorted((slot, made) for slot, made in operands.items() if made.bits & eligible)[-1:])
            applied[node] = _layers(node, operands, node in roots)
            # A product with a constant is data; one of two parameters is a weight still (U V of a factorized layer).
            is_plain = all(made.is_plain for made in operands.values()) and (
                not _is_product(node) or _makes_weight(node, operands)
            )
            made_of[node] = _Made(_union(made.bits for made in operands.values()), is_plain)
        used = _union(applied.values())
        for node, bits in read.items():  # what was part of an input only, or of the weight of the very first layer
            if type(node).__name__ != "CompiledFunctionBackward":
                applied[node] |= _union(bit for _, bit in bits if not bit & used)
        return applied

    def _read(self, candidates: Sequence[Tensor]) -> dict[Any, list[tuple[int, int]]]:
        """The nodes that read a candidate where most losses depend on it, with slot and bit."""
        read: dict[Any, list[tuple[int, int]]] = {}
        for i, leaf in enumerate(candidates):
            most = max(self.tasks[node].bit_count() for node in self.leaves[leaf])
            for node in self.leaves[leaf]:
                if self.tasks[node].bit_count() == most:
                    slots = [edge.slot for edge in self._leaves[node] if edge.to.variable is leaf]
                    read.setdefault(node, []).extend((slot, 1 << i) for slot in slots)
        return read

    def frontiers(self, shared: Sequence[Tensor]) -> list[TaskFrontier]:
        """The frontier before `shared` (`W`), grouped by task and shared node."""
        # A collection that is read as a whole as well also passes on what came by way of its parts: it mixes tasks.
        if mixing := self._passed_by & self._inner.keys():
            return AutogradGraph(self.losses, {*self._opaque, *mixing}).frontiers(shared)
        wanted = {id(tensor) for tensor in shared}
        several = {node for node, mask in self.tasks.items() if mask & (mask - 1)}
        leads: set[Any] = set()
        found: dict[tuple[int, Any], TaskFrontier] = {}
        for node in self._children_first:
            ends = [edge for edge in self._leaves.get(node, ()) if id(edge.to.variable) in wanted]
            inner = [edge for edge in self._inner[node] if edge.to in leads]
            if not ends and not inner:
                continue
            leads.add(node)
            if node not in several:
                task = self.tasks[node].bit_length() - 1
                for edge in ends + [edge for edge in inner if edge.to in several]:
                    frontier = found.setdefault((task, edge.to), TaskFrontier(task, edge.to))
                    frontier.edges.append((node, edge))
        for task, root in enumerate(self._roots):
            if root is not None and root.node in several and root.node in leads:
                found[task, root.node] = TaskFrontier(task, root.node, root=root)
        return list(found.values())

    def _walk(self) -> list[Any]:
        """Every inner node once, children before parents; iterative, as graphs are deeper than Python's stack."""
        inner = self._inner
        order: list[Any] = []
        finished: set[Any] = set()
        pending: list[Any] = [root.node for root in self._roots if root is not None]
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

    def _expand(self, node: Any) -> list[FrontierEdge]:
        """The edges of `node` to inner nodes; notes those to leaves."""
        inner: list[FrontierEdge] = []
        for slot, (child, nr) in enumerate(node.next_functions):
            if child is None:
                continue
            is_direct = type(child).__name__ not in COLLECTING
            if not is_direct:
                if (end := origin(Edge(child, nr), self._opaque, self._passed_by)) is None:
                    continue
                is_direct = end.node is child
                child, nr = end
            edge = FrontierEdge(child, slot, nr, is_direct)
            if type(child) is AccumulateGrad:
                self._leaves.setdefault(node, []).append(edge)
            else:
                inner.append(edge)
        return inner

    def _reached_by(self) -> dict[Any, int]:
        masks = dict.fromkeys(self._children_first, 0)
        for task, root in enumerate(self._roots):
            if root is not None:
                masks[root.node] |= 1 << task
        for node in reversed(self._children_first):
            mask = masks[node]
            for edge in self._inner[node]:
                masks[edge.to] |= mask
        return masks
