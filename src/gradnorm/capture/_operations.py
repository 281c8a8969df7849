"""The kinds of functions between where the tasks meet and `W`, and what they allow.

torch's own backward functions are pure: they can run again, and do not change their inputs. Others (a Python
`autograd.Function`, a C++ extension, a scripted or compiled graph) may write their result into the gradient that they
receive, as fused norms do. Some of torch's own also work on many gradients at once, under `vmap`.
"""

from __future__ import annotations

import functools
import re
from enum import IntEnum
from typing import Any

from torch.autograd.function import BackwardCFunction

TOLERANCE = 0.05
"""How far, relatively, two runs of a pure function may be apart: far above what rounding does in bfloat16, far below
what overwriting does."""
FINE_TOLERANCE = 0.01
"""The same where all gradients are in float32 or wider."""


_PRODUCTS = re.compile("mm|conv|linear", re.IGNORECASE)
"""Nodes of a layer's product with its input, which comes first."""
_AFFINE = re.compile("addmm|conv|linear", re.IGNORECASE)
"""Those of them that are certainly a layer's: `mm` may be of two inputs, as in contrastive losses."""
_LOOKUPS = re.compile("bmm|embedding|index|gather|rnn|lstm|gru|attention", re.IGNORECASE)
"""Other nodes whose output no longer counts as a parameter, whatever it is computed from."""

_SHIFTS = re.compile(r"(Add|Sub|Rsub|\w*(Layer|Batch|Group|Instance|RMS)Norm\w*)Backward\d*")
"""Nodes that add a parameter, or normalize and then scale by one."""


class Path(IntEnum):
    """The kind of a function; that of a path is the largest of its functions'."""

    BATCHED = 0
    """torch's own, and tested under `vmap`."""
    OWN = 1
    """torch's own."""
    FOREIGN = 2
    """Not torch's own: it must be given a copy."""


def kind(node: Any) -> Path:
    """The kind of a graph's node."""
    return _kind(type(node))


@functools.lru_cache(maxsize=1024)
def is_affine(node_type: type) -> bool:
    """Whether it is certainly a layer's product with its input."""
    return bool(_AFFINE.search(node_type.__name__))


@functools.lru_cache(maxsize=1024)
def is_lookup(node_type: type) -> bool:
    """Whether a layer ends here, and which operand is the input does not show."""
    return bool(_LOOKUPS.search(node_type.__name__)) or not _PRODUCTS.search(node_type.__name__)


@functools.lru_cache(maxsize=1024)
def is_product(node_type: type) -> bool:
    """Whether a layer ends here: a product, a lookup, a function that is not torch's."""
    name = node_type.__name__
    return issubclass(node_type, BackwardCFunction) or bool(_PRODUCTS.search(name) or _LOOKUPS.search(name))


@functools.lru_cache(maxsize=1024)
def is_shift(node_type: type) -> bool:
    """Whether its parameters are no layer: a bias or an embedding of positions that is added, those of a norm."""
    return bool(_SHIFTS.fullmatch(node_type.__name__))


@functools.lru_cache(maxsize=1024)
def may_make_weight(node_type: type) -> bool:
    """Whether it is a product that, of parameters alone, is the weight of a layer to come; a layer's has a bias."""
    return "mm" in node_type.__name__.lower() and not is_affine(node_type)


def foreign_below(node: Any) -> str:
    """The name of the first function on the way down from a node that is not torch's own."""
    pending, seen = [node], set()
    for each in pending:
        if kind(each) is Path.FOREIGN:
            return each.name()
        below = [child for child, _ in each.next_functions if child is not None and child not in seen]
        seen.update(below)
        pending.extend(below)
    return "a function that is not torch's own"


@functools.lru_cache(maxsize=1024)  # bounded, since classes of functions may be made without end
def _kind(node_type: type) -> Path:
    if issubclass(node_type, BackwardCFunction) or node_type.__name__ == "CppFunction":
        return Path.FOREIGN
    return Path.BATCHED if node_type.__name__.rstrip("0123456789") in _BATCHED else Path.OWN


_BATCHED = {
    f"{operation}Backward"
    for operation in (
        *("Add", "Addmm", "Clone", "Convolution", "Div", "Elu", "Expand", "Gelu", "LeakyRelu", "Mean", "Mm", "Mul"),
        *("NativeLayerNorm", "Neg", "Permute", "Relu", "ReshapeAlias", "Sigmoid", "Silu", "Softplus", "Squeeze", "Sub"),
        *("Sum", "T", "Tanh", "Transpose", "Unsqueeze", "UnsafeView", "View"),
    )
}
