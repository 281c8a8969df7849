"""Penalties on weights inside a loss, as of weight decay: they read layers, but apply none.

A loss with such a term reaches every parameter that the term is about, other tasks' heads among them. So where a
parameter is reduced to one number before it meets any input, that is no use of a layer, unless it is all that the
loss is made of, as the divergence of a network's weights from a prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .._torch_private import output_shape
from ._operations import is_product, may_make_weight


def uses(
    children_first: Sequence[Any],
    inner: Mapping[Any, Sequence[Any]],
    ends: Mapping[Any, Sequence[Any]],
    tasks: Mapping[Any, int],
) -> dict[Any, int]:
    """The losses, as a bit mask, for which a node that reads leaves uses them; the arguments are `AutogradGraph`'s."""
    plain: set[Any] = set()  # functions of parameters alone; the network's inputs do not appear but in products
    for node in children_first:
        if all(edge.to in plain for edge in inner[node]) and (
            not is_product(type(node)) or _makes_weight(node, ends.get(node, ()))
        ):
            plain.add(node)
    served = dict.fromkeys(plain, 0)  # as a layer's weight, or as what stands in for its input
    for node in reversed(children_first):
        for edge in inner[node]:
            if edge.to in plain and (node in plain or not _is_number(edge)):
                served[edge.to] |= served[node] if node in plain else tasks[node]
    used = {node: served.get(node, tasks[node]) for node in ends}
    others = 0
    for mask in used.values():
        others |= mask
    return {node: mask | tasks[node] & ~others for node, mask in used.items()}


def _is_number(edge: Any) -> bool:
    """Whether it is one number that is read; a ragged dimension is more."""
    return all(size == 1 for size in output_shape(edge.to, edge.nr))


def _makes_weight(node: Any, ends: Sequence[Any]) -> bool:
    """Whether a product is of parameters alone; an input appears as nothing, or as a leaf that is no parameter."""
    has_input = any(child is None for child, _ in node.next_functions)
    return (
        may_make_weight(type(node))
        and not has_input
        and all(isinstance(edge.to.variable, nn.Parameter) for edge in ends)
    )
