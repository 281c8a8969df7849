"""Tasks that meet no other before `W`: one task per batch, or each task by a forward of its own.

All that the nodes of such a task propagate counts as its gradient, and so would that of a loss outside the balancer
that reads the same features. Therefore its gradient is taken of its loss alone, by a product from there to `W`, in the
first backward of each set of tasks and in every `RECHECK`th. If something else arrives with the user's own backward,
it is taken so in all backwards from then on, at the cost of running the head once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .._torch_private import without_hooks
from ._graph import AccumulateGrad, AutogradGraph, TaskFrontier
from ._looks import look
from ._operations import TOLERANCE, Path, kind
from ._products import refusal

RECHECK = 100
"""Backwards of a set of tasks from one check to the next."""

Alone = Mapping[tuple[int, int], Tensor]
"""Gradients by position of the loss and `id` of the tensor of `W`."""


class Outsiders:
    """Whether losses outside the balancer add to the gradients of tasks that meet no other.

    Args:
        check: Whether to find out.
    """

    def __init__(self, check: bool) -> None:
        self._check = check
        self._backwards: dict[tuple[int, ...], int] = {}
        self._were_found = False

    def are_possible(self, tasks: Sequence[int]) -> bool:
        """Whether to take the gradients of the losses alone, in the backward of these tasks that begins."""
        count = self._backwards.get(key := tuple(tasks), 0)
        self._backwards[key] = count + 1
        return self._check and (self._were_found or count % RECHECK == 0)

    def compare(self, arrived: Tensor, alone: Tensor) -> None:
        """Compare entries, [K, N]; synchronizes with the device unless outsiders were found before."""
        if not self._were_found:
            apart = (arrived - alone).norm() > TOLERANCE * torch.maximum(arrived.norm(), alone.norm())
            self._were_found = bool(apart & torch.isfinite(arrived).all())


def taken_alone(
    graph: AutogradGraph, frontiers: Sequence[TaskFrontier], shared: Sequence[Tensor], factors: Sequence[Tensor]
) -> Alone:
    """The gradients at `W` of the losses that meet no other before, by a backward each.

    Args:
        graph: The graph of the losses.
        frontiers: Their frontier.
        shared: The tensors of `W`.
        factors: What multiplies each loss.
    """
    meeting = {frontier.task for frontier in frontiers if type(frontier.at) is not AccumulateGrad}
    lone = {i: edge for i, edge in enumerate(graph.losses) if i not in meeting}
    # A function that is not torch's own may be able to run only once, as may what refuses a second run.
    if not lone or any(kind(node) is Path.FOREIGN for node in graph.children_first):
        return {}
    found: dict[tuple[int, int], Tensor] = {}
    for position, edge in lone.items():
        try:
            with without_hooks(shared):
                gradients = look([edge], shared, [factors[position]])
        except RuntimeError as error:
            if refusal(error) is None:
                raise
            return {}
        found |= {(position, id(tensor)): g for tensor, g in zip(shared, gradients, strict=True) if g is not None}
    return found
