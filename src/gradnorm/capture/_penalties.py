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


def penalties(
    children_first: Sequence[Any],
    inner: Mapping[Any, Sequence[Any]],
    ends: Mapping[Any, Sequence[Any]],
    tasks: Mapping[Any, int],
) -> set[Any]:
    """The nodes that read leaves for a penalty; the arguments are those of `AutogradGraph`."""
    plain: set[Any] = set()  # functions of parameters alone; the network's inputs do not appear but in products
    for node in children_first:
        if all(edge.to in plain for edge in inner[node]) and (
            not is_product(type(node)) or _makes_weight(node, ends.get(node, ()))
        ):
            plain.add(node)
    serves: set[Any] = set()  # of which a layer's weight is made, or what stands in for its input
    for node in reversed(children_first):
        for edge in inner[node]:
            is_used = node in serves if node in plain else output_shape(edge.to, edge.nr).numel() > 1
            if is_used and edge.to in plain:
                serves.add(edge.to)
    found = {node for node in ends if node in plain and node not in serves}
    others = 0
    for node in ends.keys() - found:
        others |= tasks[node]
    return {node for node in found if not tasks[node] & ~others}


def _makes_weight(node: Any, ends: Sequence[Any]) -> bool:
    """Whether a product is of parameters alone; an input appears as nothing, or as a leaf that is no parameter."""
    has_input = any(child is None for child, _ in node.next_functions)
    return (
        may_make_weight(type(node))
        and not has_input
        and all(isinstance(edge.to.variable, nn.Parameter) for edge in ends)
    )
