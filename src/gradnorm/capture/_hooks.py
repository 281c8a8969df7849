"""Measurements by hooks on the frontier: each task's gradient at `W`, or at the features.

`_backward_pass.py` collects the tasks' gradients in a backward; this file processes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._errors import GraphError
from .._numerics import at_least_float32, row_norms
from ._backward_pass import BackwardPass
from ._first_look import FirstLook, look_again
from ._graph import AutogradGraph
from ._measurement import BalancedLoss, FindOpening, Present, Sums, Wanted
from ._meetings import AtMeetings, Meeting
from ._products import REENTRANT, Gradients, batched_product, can_be_batched, product
from ._self_check import SelfCheck
from ._shared import SharedParameter, entry_count, is_distributed, whole


class AtFrontier(AtMeetings):
    """Base of the measurements by hooks on the frontier."""

    def balanced(
        self, losses: Present, values: Tensor, weights: Tensor, mask: Tensor, opening: FindOpening, wanted: Wanted
    ) -> Tensor:
        tasks = [task for task, loss in enumerate(losses) if loss is not None]
        graph = AutogradGraph([loss for loss in losses if loss is not None])
        one = BackwardPass(self, tasks, values.detach().to(weights.dtype), mask, wanted)
        one.shared = self.layer.locate(graph, tasks)
        if not one.shared:
            return (weights * values).sum()
        one.frontiers = graph.frontiers([shared.used for shared in one.shared])
        self._check(one, graph)
        one.graph = graph
        one.opening = opening()
        if one.opening is not None:
            one.first_look = FirstLook(graph, one.opening).take
        elif self.outsiders.is_look_due():
            one.first_look = partial(look_again, graph)
        return BalancedLoss.apply(values, weights, one.begin)  # pyright: ignore[reportReturnType]

    def _check(self, one: BackwardPass, graph: AutogradGraph) -> None:
        """Raise if a task does not reach `W`."""
        reached = {frontier.task for frontier in one.frontiers}
        if len(reached) == len(one.tasks):
            return
        if any(type(node).__name__ == "CheckpointFunctionBackward" for node in graph.tasks):
            raise GraphError(REENTRANT)
        used = [shared.used for shared in one.shared]
        if not reached:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in used)
            if not any(tensor.requires_grad for tensor in used):
                raise GraphError(f"shared: W (shape {shapes}) {_FROZEN}")
            raise GraphError(
                f"shared: no loss reaches W (shape {shapes}); {_UNREACHED[any(map(is_distributed, used))]}"
            )
        missing = next(task for position, task in enumerate(one.tasks) if position not in reached)
        raise GraphError(
            f"the loss of task {self.names[missing]!r} does not reach {self.layer.called}; "
            "give as shared a layer that all tasks use, or leave the task out of the balancer"
        )


class AtLayer(AtFrontier):
    """`at="layer"`: gradients at `W`, as in the paper.

    Whether steps consist of several backwards is inferred from the first one. If it has only one, later steps keep
    norms only; a step that turns out to have more is not measured, and gradients are kept from then on.
    """

    has_cosines = True
    takes_products = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._backwards = 0
        self._has_learned = False
        self._batches = True

    def clear(self) -> None:
        if self._backwards and not self._has_learned:
            self._has_learned, self.adds_up = True, self._backwards > 1
        self._backwards = 0
        super().clear()

    def add(self, sums: Sums) -> None:
        self._backwards += 1
        if self._backwards > 1 and not self.adds_up:
            self.adds_up, self.is_partial = True, True
        super().add(sums)

    def entries(self, meeting: Meeting, gradients: Sequence[Gradients], shared: Sequence[SharedParameter]) -> Tensor:
        """[K, N], the tasks' gradients at `W`, flat."""
        used = [part.used for part in shared]
        if self.check and meeting.check is None:
            meeting.check = SelfCheck(meeting.node, used, meeting.path)
        if len(gradients) > 1:
            if meeting.check is not None:  # the check is of each by itself, and the values are those of every step
                for each in gradients:
                    _product(meeting, each, used)
            try:
                return self.layer.laid_out(batched_product(meeting.node, gradients, used), shared, (len(gradients),))
            except RuntimeError:
                self._batches, meeting.check = False, None
        found = [_product(meeting, each, used) for each in gradients]
        rows = [self.layer.laid_out(each, shared) for each in found]
        return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)

    def can_be_batched(self, meeting: Meeting, shared: Sequence[SharedParameter], device: torch.device) -> bool:
        usable = self._batches and not any(is_distributed(part.used) for part in shared)
        return usable and can_be_batched(meeting.node, meeting.outputs, meeting.path, len(meeting.buffers), device)

    def norms(self, sums: Sums) -> Tensor:
        return row_norms(sums.entries)

    def no_entries(self, like: Tensor) -> Tensor:
        parameters = self.layer.tensors
        dtype = torch.promote_types(parameters[0].dtype.to_real(), torch.float32)
        return like.new_zeros(len(like), sum(map(entry_count, parameters)), dtype=dtype)


class AtFeatures(AtFrontier):
    """`at="features"`: gradients where the tasks meet before `W`; other nodes are entries of one longer vector."""

    def _check(self, one: BackwardPass, graph: AutogradGraph) -> None:
        super()._check(one, graph)
        entries = dict.fromkeys(range(len(one.tasks)), 0)
        for frontier in one.frontiers:
            entries[frontier.task] += frontier.entries()
        for position, count in entries.items():
            if count <= len(one.tasks):
                raise GraphError(
                    f'at="features": task {self.names[one.tasks[position]]!r} meets the others only at its loss (the '
                    "losses are one vector, or come out of one compiled graph), where every gradient norm is 1; "
                    'measure at the layer with at="layer", or in the network with at="branches"'
                )

    def entries(self, meeting: Meeting, gradients: Sequence[Gradients], shared: Sequence[SharedParameter]) -> Tensor:
        """[K, 1], the squared norms of the contributions themselves."""
        return torch.stack([_square(each) for each in gradients]).unsqueeze(1)

    def norms(self, sums: Sums) -> Tensor:
        return sums.entries.squeeze(1).sqrt()

    def no_entries(self, like: Tensor) -> Tensor:
        return like.new_zeros(len(like), 1)


def _product(meeting: Meeting, gradients: Gradients, used: Sequence[Tensor]) -> Sequence[Tensor | None]:
    has_run, meeting.has_run = meeting.has_run, True
    if meeting.check is not None:
        return meeting.check.product(gradients, has_run)
    return product(meeting.node, gradients, used, meeting.path, has_run)


def _square(gradients: Gradients) -> Tensor:
    squares = [torch.linalg.vector_norm(at_least_float32(whole(each))).square() for each in gradients.values()]
    return squares[0] if len(squares) == 1 else torch.stack(squares).sum()


_FROZEN = (
    "was frozen after the balancer was made: requires_grad is False, so that no gradient reaches it. Call "
    "balancer.freeze() to keep the loss weights as well, or make the balancer for a layer that trains"
)
_UNREACHED = {
    False: "give a layer that this forward used, or omit shared= to detect the last shared layer; where "
    "parameters are replaced (fully_shard, parallelize_module), make the balancer after that",
    True: "a parameter that fully_shard has split is not in the graph: give the layer itself instead of its weight, "
    "or model=, or omit shared= to detect the last shared layer",
}
