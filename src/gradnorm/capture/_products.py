"""The vector–Jacobian product that takes a task's gradient from where the tasks meet to `W`, and why it may fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._errors import GraphError
from ._graph import AccumulateGrad


def products(node: Any, gradients: Mapping[int, Tensor], used: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """From the gradients of a shared node's outputs, by number, to each tensor of `W`; `None` where no path leads.

    Raises:
        GraphError: Autograd refuses it, for a reason that has a remedy.
    """
    if type(node) is AccumulateGrad:
        # A copy, since what arrives here may become, or be added into, the tensor's `.grad`.
        return [gradients[0].clone() if tensor is node.variable else None for tensor in used]
    try:
        return torch.autograd.grad(
            [GradientEdge(node, nr) for nr in gradients],
            used,
            list(gradients.values()),
            retain_graph=True,
            allow_unused=True,
        )
    except RuntimeError as error:
        if (remedy := refusal(error)) is None:
            raise
        raise GraphError(remedy) from error


def refusal(error: RuntimeError) -> str | None:
    """What to do about an error of autograd, if it is one of those that have a remedy."""
    return next((remedy for sign, remedy in _REFUSALS.items() if sign in str(error)), None)


REENTRANT = (
    "W lies in or before a segment that is checkpointed with use_reentrant=True, where autograd forbids gradients of "
    "single tensors; use checkpoint(..., use_reentrant=False)"
)

_DONATED = (
    "torch.compile has compiled this backward for a single run (donated buffers), perhaps in an earlier process that "
    "left it in the cache, and W needs one for each task; import torch._functorch.config and set its donated_buffer "
    'to False before compiling, or leave the block that holds W uncompiled, or measure with at="branches"'
)

_REFUSALS = {"use_reentrant": REENTRANT, "donated buffer": _DONATED}
"""By what torch's own message says."""
