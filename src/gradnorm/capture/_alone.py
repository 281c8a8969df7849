"""Tasks that meet no other before `W`: one task per batch, or each task by a forward of its own.

All that the nodes of such a task propagate counts as its gradient, and so would that of a loss outside the balancer
that reads the same features. Therefore what reaches `W` of its loss alone is taken by a backward of its own, in the
task's first measured backward and in every `RECHECK`th. If something else arrives with the user's backward, it is taken
so in all backwards from then on, at the cost of running the head once more. Of tasks that do meet others the first look
takes the losses alone, and a look in every `RECHECK`th backward; if they differ from what arrives, the user is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._torch_private import without_hooks
from ._graph import AccumulateGrad, AutogradGraph, TaskFrontier
from ._looks import look
from ._operations import TOLERANCE, Path
from ._products import refusal

RECHECK = 97
"""Backwards of a task from one check to the next; a prime, since what is outside may run in every k-th."""

Alone = Mapping[tuple[int, Any], Mapping[int, Tensor]]
"""The gradients of a shared node's outputs, by number; by position of the loss, and node."""


class Outsiders:
    """Whether losses outside the balancer add to the gradients of tasks that meet no other.

    Args:
        check: Whether to find out.
    """

    def __init__(self, check: bool) -> None:
        self._check = check
        self._left: dict[int, int] = {}
        self._were_found = False
        self._until_look = math.inf

    def due(self, tasks: Sequence[int], has_looked: bool) -> list[int]:
        """The positions of the tasks to be taken alone in the backward that begins.

        Args:
            tasks: Those in it.
            has_looked: Whether what arrives is compared with a look, so that all are.
        """
        if not self._check:
            return []
        for task in tasks:
            self._left[task] = max(0, self._left.get(task, 0) - 1)
        return [i for i, task in enumerate(tasks) if self._were_found or has_looked or not self._left[task]]

    def has_looked(self) -> None:
        """A first look has run: heads can run twice."""
        self._until_look = RECHECK

    def is_look_due(self) -> bool:
        """Whether the losses of tasks that meet others are to be looked at in the backward that comes."""
        self._until_look -= 1
        if self._until_look > 0:
            return False
        self._until_look = RECHECK
        return True

    def stop_looking(self) -> None:
        """The user has been told, or no look is possible."""
        self._until_look = math.inf

    def compare(self, task: int, arrived: Tensor, alone: Tensor) -> None:
        """Compare a task's entries, [N]; synchronizes with the device unless outsiders were found before."""
        if not self._were_found and bool(torch.isfinite(arrived.norm())):  # an overflow says nothing
            self._left[task] = RECHECK
            self._were_found = bool((arrived - alone).norm() > TOLERANCE * torch.maximum(arrived.norm(), alone.norm()))


def taken_alone(
    graph: AutogradGraph,
    frontiers: Sequence[TaskFrontier],
    shared: Sequence[Tensor],
    due: Collection[int],
    factor: Callable[[int], Tensor],
) -> Alone:
    """What arrives of each loss alone where only `W` follows, by a backward each.

    Args:
        graph: The graph of the losses.
        frontiers: Their frontier.
        shared: The tensors of `W`.
        due: Positions of the losses that are wanted.
        factor: What multiplies the loss at a position.
    """
    wanted = set(map(id, shared))
    ends = {position: reached for position, reached in _ends(graph, frontiers, wanted).items() if position in due}
    # A function that is not torch's own may be able to run only once, as may what refuses a second run.
    if not ends or any(each.whole is Path.FOREIGN for each in frontiers if each.task in ends):
        return {}
    found: dict[tuple[int, Any], dict[int, Tensor]] = {}
    for position, reached in ends.items():
        inputs = [at.variable if type(at) is AccumulateGrad else GradientEdge(at, nr) for at, nr in reached]
        try:
            with without_hooks(shared):
                gradients = look([graph.losses[position]], inputs, [factor(position)])
        except RuntimeError as error:
            if refusal(error) is None:
                raise
            return {}
        for (at, nr), gradient in zip(reached, gradients, strict=True):
            if gradient is not None:
                found.setdefault((position, at), {})[nr] = gradient
    return found


def _ends(
    graph: AutogradGraph, frontiers: Sequence[TaskFrontier], wanted: Collection[int]
) -> dict[int, list[tuple[Any, int]]]:
    """The frontier of each loss where nothing but `W` follows anywhere on it, and no part of it follows another."""
    followed = {at: _only_w(graph, at, wanted) for at in {frontier.at for frontier in frontiers}}
    if all(below is None for below in followed.values()):  # as in most networks
        return {}
    ends: dict[int, list[tuple[Any, int]]] = {}
    for position in {frontier.task for frontier in frontiers}:
        own = [frontier for frontier in frontiers if frontier.task == position]
        below = [followed[frontier.at] for frontier in own]
        if all(each is not None and each.isdisjoint(frontier.at for frontier in own) for each in below):
            ends[position] = [(frontier.at, nr) for frontier in own for nr in sorted(frontier.outputs)]
    return ends


def _only_w(graph: AutogradGraph, node: Any, wanted: Collection[int]) -> set[Any] | None:
    """What follows a node, if it leads to nothing but `W`: the leaf itself, its cast under autocast, its transpose."""
    pending, followed = [node], set()
    while pending:
        each = pending.pop()
        leaves = {edge.to for edge in graph.ends.get(each, ())}
        if any(id(leaf.variable) not in wanted for leaf in ({each} if type(each) is AccumulateGrad else leaves)):
            return None
        below = leaves | {edge.to for edge in graph.inner.get(each, ())}
        pending += [child for child in below - followed if type(child) is not AccumulateGrad]
        followed |= below
    return followed
