"""Nodes that only collect tensors, or split a collection.

They are `stack`, `cat`, `losses[i] = loss`, and `unbind`, `select`, `split` and slices along any dimension, with
dimensions of size one put in (`unsqueeze`, `stack` of one tensor) or taken out (`squeeze`) between them. In the
graph such a node ties together all that it holds: whoever reads one entry seems to reach every other. `origin` looks
through them: it follows what is read to the one tensor that it was before it was collected.

An entry is a range along one dimension. Where it is not exactly one of the collected tensors, the node is not skipped
and counts as one that mixes tasks: still correct, at the cost of one product per task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from .._torch_private import output_shape, saved, written


class Edge(NamedTuple):
    """A node, and the index of its output."""

    node: Any  # a torch.autograd.graph.Node, whose generated attributes (`_saved_dim`, `variable`) no stub declares
    nr: int


class Range(NamedTuple):
    """Entries `start` to `stop` along `dim` of a tensor, all of it in the other dimensions."""

    dim: int
    start: int
    stop: int


def origin(edge: Edge, opaque: Collection[Any] = (), passed_by: set[Any] | None = None) -> Edge | None:
    """`edge` moved past collecting nodes, or `None` where it reads a constant.

    The gradients at both are the same numbers in the same order; their shapes may differ by dimensions of size one.

    Args:
        edge: The edge to start from.
        opaque: Nodes not to skip.
        passed_by: Receives the skipped nodes.
    """
    passed, node, nr, part = edge, edge.node, edge.nr, None
    way: list[Any] = []
    while (kind := type(node).__name__) in COLLECTING and node not in opaque:
        way.append(node)
        if kind == "_DDPSinkBackward":
            node, nr = node.next_functions[nr]
        elif kind in _VIEWS:
            part = _compose(part, _VIEWS[kind](node, nr), kind)
            if part is None:
                return passed
            node, nr = node.next_functions[0]
        elif kind in _RESHAPES and part is not None:
            part = _RESHAPES[kind](node, part)
            if part is None:
                return passed
            node, nr = node.next_functions[0]
        elif kind in _COLLECTIONS and part is not None:
            found = _COLLECTIONS[kind](node, part)
            if found is None:
                return passed
            (node, nr), part = found
        else:
            return passed
        if (node is None or part is None) and passed_by is not None:
            passed_by.update(way)
        if node is None:
            return None
        if part is None:
            passed = Edge(node, nr)
    return passed


# ------------------------------------------------------------------------------- views: a range of what is below them


def _index(value: int, size: int) -> int:
    """The signed value of an index: autograd saves a negative one as unsigned."""
    value = value - 2**64 if value >= 2**63 else value
    return value + size if value < 0 else value


def _select(node: Any, nr: int) -> Range:
    sizes = saved(node, "self_sym_sizes")
    dim = _index(saved(node, "dim"), len(sizes))
    start = _index(saved(node, "index"), sizes[dim])
    return Range(dim, start, start + 1)


def _unbind(node: Any, nr: int) -> Range:
    return Range(_index(saved(node, "dim"), len(output_shape(node, 0)) + 1), nr, nr + 1)


def _slice(node: Any, nr: int) -> Range | None:
    if saved(node, "step") != 1:
        return None
    sizes = saved(node, "self_sym_sizes")
    dim = _index(saved(node, "dim"), len(sizes))
    start, stop = (_index(saved(node, end) or 0, sizes[dim]) for end in ("start", "end"))
    return Range(dim, min(start, sizes[dim]), min(stop, sizes[dim]))


def _split(node: Any, nr: int) -> Range:
    dim = _index(saved(node, "dim"), len(saved(node, "self_sym_sizes")))
    start = sum(output_shape(node, before)[dim] for before in range(nr))
    return Range(dim, start, start + output_shape(node, nr)[dim])


def _compose(above: Range | None, below: Range | None, kind: str) -> Range | None:
    """The range `above` of a view, in coordinates of the tensor that the view `below` is of."""
    if above is None or below is None:
        return below
    removes = kind in ("SelectBackward0", "UnbindBackward0")
    if removes or above.dim != below.dim:
        return None  # two dimensions
    return Range(below.dim, below.start + above.start, below.start + above.stop)


_VIEWS: dict[str, Callable[[Any, int], Range | None]] = {
    "SelectBackward0": _select,
    "UnbindBackward0": _unbind,
    "SliceBackward0": _slice,
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split,
}


# --------------------------------------------------- dimensions of size one: the same range, counted by what is below


def _squeeze(node: Any, part: Range) -> Range:
    sizes = saved(node, "self_sym_sizes")
    gone = range(len(sizes)) if type(node).__name__ == "SqueezeBackward0" else [_index(saved(node, "dim"), len(sizes))]
    kept = [dim for dim, size in enumerate(sizes) if size != 1 or dim not in gone]
    return part._replace(dim=kept[part.dim])


def _unsqueeze(node: Any, part: Range) -> Range | None:
    return _without(part, _index(saved(node, "dim"), len(output_shape(node, 0))))


def _without(part: Range, dim: int) -> Range | None:
    """The range, where `dim` is not counted."""
    return None if part.dim == dim else part._replace(dim=part.dim - (part.dim > dim))


_RESHAPES: dict[str, Callable[[Any, Range], Range | None]] = {
    "SqueezeBackward0": _squeeze,
    "SqueezeBackward1": _squeeze,
    "UnsqueezeBackward0": _unsqueeze,
}


# ---------------------------------------------------------------------- collections: which of their tensors a range is

_Found = tuple[tuple[Any, int], Range | None]
"""The edge below, and the range of it; no range if it is all of it."""


def _in_stack(node: Any, part: Range) -> _Found | None:
    dim = _index(saved(node, "dim"), len(output_shape(node, 0)))
    if len(node.next_functions) == 1 and (inside := _without(part, dim)) is not None:
        return node.next_functions[0], inside
    if part.dim != dim or part.stop != part.start + 1:
        return None
    return node.next_functions[part.start], None


def _in_cat(node: Any, part: Range) -> _Found | None:
    if part.dim != _index(saved(node, "dim"), len(output_shape(node, 0))):
        return None
    start = 0
    for child, nr in node.next_functions:
        if child is None:
            return None  # a constant, whose size no node tells
        stop = start + output_shape(child, nr)[part.dim]
        if (start, stop) == (part.start, part.stop):
            return (child, nr), None
        start = stop
    return None


def _in_copy_slices(node: Any, part: Range) -> _Found | None:
    """`tensor[…] = values`: the values, if the range is what was written, or else what the tensor held before."""
    copied = written(node)
    there = copied and _range_of(*copied)
    if copied is None or there is None or there.dim != part.dim:
        return None
    if (there.start, there.stop) == (part.start, part.stop):
        child, nr = node.next_functions[1]
        spread = child is not None and output_shape(child, nr).numel() != math.prod(size for size, _ in copied.part)
        return None if spread else ((child, nr), None)
    if there.stop <= part.start or part.stop <= there.start:
        return node.next_functions[0], part
    return None


def _range_of(base: Sequence[tuple[int, int]], part: Sequence[tuple[int, int]], offset: int) -> Range | None:
    """The range that a strided part of a tensor is; both are sizes and strides by dimension."""
    for dim, (_, stride) in enumerate(base):
        start, rest = divmod(offset, stride or 1)
        kept = [*base[:dim], *base[dim + 1 :]]
        if rest:
            continue
        if list(part) == kept:
            return Range(dim, start, start + 1)
        if len(part) == len(base) and [*part[:dim], *part[dim + 1 :]] == kept and part[dim][1] == stride:
            return Range(dim, start, start + part[dim][0])
    return None


_COLLECTIONS: dict[str, Callable[[Any, Range], _Found | None]] = {
    "StackBackward0": _in_stack,
    "CatBackward0": _in_cat,
    "CopySlices": _in_copy_slices,
}
COLLECTING = {"_DDPSinkBackward", *_VIEWS, *_RESHAPES, *_COLLECTIONS}
"""The names of the nodes that are looked through."""
