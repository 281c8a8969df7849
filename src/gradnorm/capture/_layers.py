"""Which layers come last on the way to the losses.

Autograd's graph has operations, not layers. A layer appears as a parameter that meets its input in a product; before
that it may be transposed, cast, normalized, or computed from several parameters. The network's inputs do not appear, so
the output of the first layer looks like a function of its parameter.

The rules here use the names and operands of nodes; each covers a kind of network, named in the tests.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ._graph import AutogradGraph
from ._operations import is_affine, is_lookup, is_product, is_shift, may_make_weight

_COMPILED = "CompiledFunctionBackward"


class _Made(NamedTuple):
    """The leaves that a tensor is computed from, as a bit mask, and whether by elementwise operations only."""

    leaves: int
    is_plain: bool


def last_layers(
    graph: AutogradGraph, candidates: Sequence[Tensor], passed_over: Sequence[Tensor], uses: Mapping[Any, int]
) -> list[Tensor]:
    """Those of the candidates that no other of them follows on the way to the losses.

    What is only added, or scales a normalized tensor, counts where nothing else is.

    A layer that is used several times counts where most losses depend on it: a head may use tied weights once more.
    Where no place is common to all, as with a forward per loss, first uses count: in the graph of a gradient every
    layer is used once more, in reverse.

    Args:
        graph: Of the losses.
        candidates: Leaves of it.
        passed_over: Leaves that are no candidates, but make weights together with them.
        uses: The mask of each node that reads leaves.
    """
    eligible = (1 << len(candidates)) - 1
    applied = _first_uses(graph, _applied(graph, [*candidates, *passed_over], eligible, uses))
    eligible = _union(bits & eligible for node, bits in applied.items() if not is_shift(type(node))) or eligible
    above = dict.fromkeys(graph.children_first, 0)
    last = 0
    for node in reversed(graph.children_first):
        mine, followers = applied[node] & eligible, above[node]
        if not followers & ~mine:
            last |= mine
        for edge in graph.inner[node]:
            above[edge.to] |= followers | mine
    return [leaf for i, leaf in enumerate(candidates) if last >> i & 1]


def _applied(graph: AutogradGraph, leaves: Sequence[Tensor], eligible: int, uses: Mapping[Any, int]) -> dict[Any, int]:
    """The nodes at which layers are applied to their inputs, each with the leaves there, as a bit mask."""
    read = _read(graph, leaves, uses)
    made: dict[Any, _Made] = {}
    applied: dict[Any, int] = {}
    roots = {root.node for root in graph.roots if root is not None}
    for node in graph.children_first:
        operands = {slot: _Made(bit, is_plain=True) for slot, bit in read.get(node, ())}
        operands |= {edge.slot: made[edge.to] for edge in graph.inner[node] if made[edge.to].leaves}
        if type(node).__name__ == _COMPILED:  # the order inside does not show: what it takes last
            operands = dict(sorted((slot, each) for slot, each in operands.items() if each.leaves & eligible)[-1:])
        applied[node] = _layer_at(node, operands, node in roots)
        is_plain = _are_plain(operands) and (not is_product(type(node)) or _makes_weight(node, operands))
        made[node] = _Made(_union(each.leaves for each in operands.values()), is_plain)
    used = _union(applied.values())
    for node, bits in read.items():  # what was part of an input only, or of the weight of the very first layer
        if type(node).__name__ != _COMPILED:
            applied[node] |= _union(bit for _, bit in bits if not bit & used)
    return applied


def _read(graph: AutogradGraph, leaves: Sequence[Tensor], uses: Mapping[Any, int]) -> dict[Any, list[tuple[int, int]]]:
    """The nodes that read a leaf where most losses depend on it, with slot and bit."""
    read: dict[Any, list[tuple[int, int]]] = {}
    for i, leaf in enumerate(leaves):
        most = max(uses[node].bit_count() for node in graph.leaves[leaf])
        for node in graph.leaves[leaf]:
            if uses[node].bit_count() == most:
                slots = [edge.slot for edge in graph.ends[node] if edge.to.variable is leaf]
                read.setdefault(node, []).extend((slot, 1 << i) for slot in slots)
    return read


def _first_uses(graph: AutogradGraph, applied: dict[Any, int]) -> dict[Any, int]:
    """`applied`, without the later uses of leaves that are nowhere used for all losses, and of others all other uses.

    Such are those in the backward of a derivative that is a loss itself, as forces beside an energy are.
    """
    common = _union(bits for node, bits in applied.items() if graph.tasks[node] == graph.everyone)
    below: dict[Any, int] = {}
    first: dict[Any, int] = {}
    for node in graph.children_first:
        before = _union(below[edge.to] for edge in graph.inner[node])
        is_common = graph.tasks[node] == graph.everyone
        first[node] = applied[node] & (common if is_common else ~common & ~before)
        below[node] = before | applied[node]
    return first


def _layer_at(node: Any, operands: Mapping[int, _Made], is_root: bool) -> int:
    """Which leaves are the layer that is applied at a node, and not its input; `operands` are by slot."""
    if not operands or _makes_weight(node, operands):
        return 0
    plain = _union(each.leaves for each in operands.values() if each.is_plain)
    if not is_product(type(node)):  # a parameter that is added to an input, say
        return 0 if _are_plain(operands) and not is_root else plain
    last = operands[max(operands)]
    if is_lookup(type(node)):
        return plain
    if plain or not is_affine(type(node)):
        return last.leaves if last.is_plain else plain
    others = _union(each.leaves for slot, each in operands.items() if slot != max(operands))
    return last.leaves & ~others if others else 0  # a computed weight, unless it is the only operand


def _makes_weight(node: Any, operands: Mapping[int, _Made]) -> bool:
    """Whether a product is of parameters alone, and so the weight of a layer to come."""
    return len(operands) > 1 and _are_plain(operands) and may_make_weight(type(node))


def _are_plain(operands: Mapping[int, _Made]) -> bool:
    return all(each.is_plain for each in operands.values())


def _union(masks: Iterable[int]) -> int:
    return functools.reduce(operator.or_, masks, 0)
