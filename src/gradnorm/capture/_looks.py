"""Backwards of our own inside the user's, of which nothing else may know: not DDP, and no balancer."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._torch_private import first_backward_still_to_come, output_dtype, output_shape
from ._collectors import Edge

looking = threading.local()
"""`now` is set while such a backward runs in this thread."""


@contextmanager
def a_look(nodes: Iterable[Any]) -> Iterator[None]:
    """Context for a backward from these nodes without side effects, also on DDP's first backward and on balancers."""
    with first_backward_still_to_come(_below(nodes)), _looking():
        yield


def look(edges: Sequence[Edge], inputs: Sequence[Tensor | GradientEdge], factors: Sequence[Tensor]) -> Any:
    """The gradients of the sum of these losses, each times its factor, in a backward without side effects."""
    with a_look(edge.node for edge in edges):
        return torch.autograd.grad(  # pyright: ignore[reportCallIssue]
            [GradientEdge(*edge) for edge in edges],
            inputs,  # pyright: ignore[reportArgumentType]
            [
                factor.to(output_dtype(*edge)).expand(output_shape(*edge))
                for edge, factor in zip(edges, factors, strict=True)
            ],
            retain_graph=True,
            allow_unused=True,
        )


@contextmanager
def _looking() -> Iterator[None]:
    looking.now = True  # a balancer that runs backward in here does not look, so that looks are never nested
    try:
        yield
    finally:
        looking.now = False


def _below(nodes: Iterable[Any]) -> list[Any]:
    """Every node of the graph, including skipped ones."""
    pending, seen = list(nodes), {}
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen[node] = None
            pending.extend(child for child, _ in node.next_functions)
    return list(seen)
