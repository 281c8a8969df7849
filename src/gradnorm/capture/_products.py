"""The vector–Jacobian product that propagates a task's gradient from where the tasks meet to `W`, and its errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._errors import GraphError
from .._torch_private import output_shape, without_hooks
from ._graph import AccumulateGrad
from ._operations import Path, foreign_below

Gradients = Mapping[int, Tensor]
"""The gradients of a shared node's outputs, by number."""

FEWEST_BATCHED = 4
"""Minimum number of products to batch; fewer are as fast one by one."""
MOST_BATCHED = {"cpu": 2**17, "cuda": 2**22}
"""Maximum number of entries in the gradients of several tasks to batch into one product, by device type.
Above, one product per task is as fast, and needs less memory: `benchmarks/products.py`."""


def product(
    node: Any, gradients: Gradients, used: Sequence[Tensor], path: Path, is_again: bool
) -> Sequence[Tensor | None]:
    """From the gradients of a shared node's outputs to each tensor of `W`; `None` where no path leads.

    Args:
        node: The node where the tasks meet.
        gradients: The gradients of one task.
        used: The tensors of `W`.
        path: The kind of the functions in between.
        is_again: Whether a product has been taken from there before.

    Raises:
        GraphError: Autograd refuses it for a reason with a remedy, or a function on the path can run only once.
    """
    if type(node) is AccumulateGrad:
        return [gradients[0] if tensor is node.variable else None for tensor in used]
    lent = [each.clone() if path is Path.FOREIGN else each for each in gradients.values()]
    edges = [GradientEdge(node, nr) for nr in gradients]
    try:
        with without_hooks(used):
            return torch.autograd.grad(edges, used, lent, retain_graph=True, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and (remedy := refusal(error)) is not None:
            raise GraphError(remedy) from error
        # What is no RuntimeError was raised in Python: by such a function, or by hooks that unpack saved tensors.
        if is_again and (path is Path.FOREIGN or not isinstance(error, RuntimeError)):
            raise GraphError(FAILS.format(foreign_below(node))) from error
        raise


def batched_product(node: Any, gradients: Sequence[Gradients], used: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The products of K tasks at once: [K, *] for each tensor of `W`.

    Raises:
        RuntimeError: `vmap` does not get through, as where a checkpointed segment draws random numbers again.
    """
    numbers = sorted({nr for each in gradients for nr in each})
    like = {nr: each[nr] for each in gradients for nr in each}
    lent = [
        torch.stack([each[nr] if nr in each else torch.zeros_like(like[nr]) for each in gradients]) for nr in numbers
    ]
    edges = [GradientEdge(node, nr) for nr in numbers]
    with without_hooks(used):
        return torch.autograd.grad(edges, used, lent, retain_graph=True, allow_unused=True, is_grads_batched=True)


def can_be_batched(node: Any, outputs: Collection[int], path: Path, tasks: int, device: torch.device) -> bool:
    """Whether one product for all tasks is faster than one per task.

    Args:
        node: The node where the tasks meet.
        outputs: Indices of the outputs that they read.
        path: The kind of the functions between the node and `W`.
        tasks: Number of tasks.
        device: Device of the gradients.
    """
    if path is not Path.BATCHED or tasks < FEWEST_BATCHED or type(node) is AccumulateGrad:
        return False
    entries = sum(output_shape(node, nr).numel() for nr in outputs)
    return tasks * entries <= MOST_BATCHED.get(device.type, 0)


def refusal(error: RuntimeError) -> str | None:
    """The remedy for an error of autograd, if there is one."""
    return next((remedy for sign, remedy in _REFUSALS.items() if sign in str(error)), None)


FAILS = (
    "{} lies between where the tasks meet and W, and the backward there failed when it ran once more for the "
    "measurement: it can run only once, overwrites what it saved, or a hook unpacks saved tensors only once; measure "
    'with at="features", shared=, initial_weights=None and check=False, which run nothing twice, or name a layer after '
    "it with shared="
)

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
"""Remedies by a part of torch's error message."""
