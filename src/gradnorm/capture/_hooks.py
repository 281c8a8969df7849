"""Each task's gradient, measured inside the user's own backward.

Hooks on the frontier (`_graph.py`) see a task's contribution before autograd adds the tasks up. As soon as a task's
last contribution to a shared node has arrived, and so before that node runs and frees its buffers, one vector–Jacobian
product takes it on to `W`; autograd prunes that product to the nodes between the two. Where the frontier leads straight
into `W` the contribution is the gradient itself.

What arrives is scaled by the weight and by whatever multiplied the balanced loss (a loss scale, 1 / accumulation
steps). The gradient that reaches the balanced loss is exactly that factor, and is kept beside the sums.

A hook may refer to nodes below its own only, never to itself or what is above: Python's garbage collector does not see
a cycle through the graph, so it would leak. Hooks are therefore registered when the backward begins.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._errors import GraphError, StateError
from .._numerics import at_least_float32, row_norms
from .._torch_private import never_compiled, output_dtype, output_shape, outside_compiled_graph
from ._first_look import FirstLook
from ._graph import AutogradGraph, FrontierEdge, TaskFrontier
from ._measurement import BalancedLoss, FindOpening, Measurement, Opening, Present, Sums
from ._products import REENTRANT, products
from ._shared import SharedParameter, flat, is_distributed, whole


@dataclass
class GradientBuffer:
    """The contributions of one task to one shared node, until all of them are in."""

    task: int
    node: Any
    expected: int
    waiting: int = 0
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def reset(self) -> None:
        self.waiting = self.expected
        self.gradients = {}

    def add(self, edge: FrontierEdge, gradient: Tensor | None) -> None:
        self.waiting -= 1
        if gradient is None:
            return
        if not edge.is_direct:
            gradient = gradient.reshape(output_shape(edge.to, edge.nr)).to(output_dtype(edge.to, edge.nr))
        known = self.gradients.get(edge.nr)
        self.gradients[edge.nr] = gradient if known is None else known + gradient


class BackwardPass:
    """One forward's losses: collects the tasks' gradients in its backward, then adds them to the measurement.

    Args:
        measurement: What it measures for.
        tasks: The task of each loss in the graph.
        losses: [T], detached; 0 for absent tasks.
        mask: [T], 1 for the tasks present and 0 for the others.
    """

    def __init__(self, measurement: AtFrontier, tasks: Sequence[int], losses: Tensor, mask: Tensor) -> None:
        self.measurement = measurement
        self.tasks = tasks
        self.losses = losses
        self.mask = mask
        self.shared: Sequence[SharedParameter] = ()
        self.frontiers: Sequence[TaskFrontier] = ()
        self.first_look: FirstLook | None = None
        self.opening: Opening | None = None
        self._buffers: list[GradientBuffer] = []
        self._roots: list[tuple[GradientBuffer, FrontierEdge]] = []
        self._handles: list[Any] = []
        self._remaining = 0
        self._factor: Tensor | None = None
        self._entries: Tensor | None = None
        self._is_running = False

    def begin(self, factor: Tensor, weights: Tensor) -> Tensor:
        """Runs first in the backward: the factor is known, nothing has arrived. Returns the weights to go on with."""
        self.measurement.begin()
        if self.first_look is not None:
            look, self.first_look = self.first_look, None
            look.take(self, factor)
        if self.opening is not None and self.opening.weights is not None:
            weights = self.opening.weights
        if not self._handles:
            self.watch()
        self.start(factor, weights)
        return weights

    def watch(self) -> None:
        """Register the hooks."""
        edges: dict[Any, list[tuple[FrontierEdge, GradientBuffer]]] = {}
        for frontier in self.frontiers:
            expected = len(frontier.edges) + (frontier.root is not None)
            buffer = GradientBuffer(self.tasks[frontier.task], frontier.at, expected)
            self._buffers.append(buffer)
            if frontier.root is not None:
                self._roots.append((buffer, FrontierEdge(frontier.at, 0, frontier.root.nr, is_direct=False)))
            for node, edge in frontier.edges:
                edges.setdefault(node, []).append((edge, buffer))
        crossed = never_compiled(self._crossed)
        self._handles = [node.register_hook(partial(crossed, arriving)) for node, arriving in edges.items()]
        self.frontiers = ()

    def unwatch(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._buffers, self._roots, self._is_running = [], [], [], False

    def start(self, factor: Tensor, weights: Tensor) -> None:
        """Wait for the tasks' gradients, which are scaled by `factor` and `weights`."""
        self._factor = factor
        self._is_running, self._entries = True, None
        self._remaining = len(self._buffers)
        for buffer in self._buffers:
            buffer.reset()
        for buffer, edge in self._roots:
            spread = (factor * weights[buffer.task]).expand(output_shape(edge.to, edge.nr))
            buffer.add(edge, spread)
            self._measure_if_complete(buffer)

    def finish(self) -> Sums:
        """What was measured."""
        assert self._factor is not None
        if self._entries is None:  # every contribution was undefined: no gradient at all
            self._entries = at_least_float32(self.losses.new_zeros(len(self.mask), 1))
        factors = self._factor.to(self.mask.dtype) * self.mask
        sums = Sums(self._entries, factors * self.losses, factors, self.mask)
        self._is_running, self._entries = False, None
        return sums

    @torch.no_grad()
    def _crossed(
        self,
        arriving: list[tuple[FrontierEdge, GradientBuffer]],
        gradients: tuple[Tensor | None, ...],
        _: object,
    ) -> None:
        """Runs after a frontier node of a task, with what it is about to pass on."""
        if not self._is_running:
            return  # this backward did not come through the balanced loss
        for edge, buffer in arriving:
            buffer.add(edge, gradients[edge.slot])
            self._measure_if_complete(buffer)

    def _measure_if_complete(self, buffer: GradientBuffer) -> None:
        if buffer.waiting:
            return
        if buffer.gradients:
            entries = self.measurement.entries(buffer, self.shared)
            if self._entries is None:
                self._entries = entries.new_zeros(len(self.mask), entries.numel())
            self._entries[buffer.task] += entries
            buffer.gradients = {}
        self._remaining -= 1
        if not self._remaining and not self.measurement.is_looking:
            self.measurement.add(self.finish())


class AtFrontier(Measurement):
    """Measures by hooks on the frontier; what becomes of a task's gradient there is for the subclasses to say."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.is_looking = False
        self._sums: Sums | None = None

    @property
    def sums(self) -> Sums | None:
        """What the backwards since the last `clear` measured; `None` if there was none."""
        return self._sums

    def clear(self) -> None:
        self._sums = None

    def add(self, sums: Sums) -> None:
        self._sums = sums if self._sums is None else self._sums.plus(sums)

    def balanced(self, losses: Present, values: Tensor, weights: Tensor, mask: Tensor, opening: FindOpening) -> Tensor:
        return outside_compiled_graph(self._balanced, losses, values, weights, mask, opening)

    def _balanced(self, losses: Present, values: Tensor, weights: Tensor, mask: Tensor, opening: FindOpening) -> Tensor:
        tasks = [task for task, loss in enumerate(losses) if loss is not None]
        graph = AutogradGraph([loss for loss in losses if loss is not None])
        one = BackwardPass(self, tasks, values.detach().to(weights.dtype), mask)
        one.shared = self.layer.locate(graph, tasks)
        if not one.shared:
            return (weights * values).sum()
        one.frontiers = graph.frontiers([shared.used for shared in one.shared])
        self._check(one, graph)
        one.opening = opening()
        if one.opening is not None:
            one.first_look = FirstLook(graph, one.opening)
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

    @abstractmethod
    def entries(self, buffer: GradientBuffer, shared: Sequence[SharedParameter]) -> Tensor:
        """[N], what the contributions of one task add to its entries."""

    def nothing(self, like: Tensor) -> Sums:
        if not self.layer.parameters:
            raise StateError(
                "this process has seen no loss yet and so knows no W to take part with; give the layer with shared="
            )
        zeros = torch.zeros_like(like)
        return Sums(self.no_entries(like), zeros, zeros, zeros)

    @abstractmethod
    def no_entries(self, like: Tensor) -> Tensor:
        """[T, N], zeros."""


class AtLayer(AtFrontier):
    """`at="weights"`: gradients at `W`, as in the paper."""

    has_cosines = True

    def entries(self, buffer: GradientBuffer, shared: Sequence[SharedParameter]) -> Tensor:
        """[N], the task's gradient at `W`, flat."""
        found = dict(
            zip(map(id, shared), products(buffer.node, buffer.gradients, [part.used for part in shared]), strict=True)
        )
        parts = self.layer.parameters
        return flat([found.get(id(part)) for part in parts], [part.used for part in parts])

    def norms(self, sums: Sums) -> Tensor:
        return row_norms(sums.entries)

    def no_entries(self, like: Tensor) -> Tensor:
        parameters = self.layer.tensors
        dtype = torch.promote_types(parameters[0].dtype, torch.float32)
        return like.new_zeros(len(like), sum(tensor.numel() for tensor in parameters), dtype=dtype)


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
                    'measure at the layer with at="weights", or in the network with at="branches"'
                )

    def entries(self, buffer: GradientBuffer, shared: Sequence[SharedParameter]) -> Tensor:
        """[1], the squared norm of the contributions themselves."""
        squares = [at_least_float32(whole(gradient)).square().sum() for gradient in buffer.gradients.values()]
        return torch.stack(squares).sum().unsqueeze(0)

    def norms(self, sums: Sums) -> Tensor:
        return sums.entries.squeeze(1).sqrt()

    def no_entries(self, like: Tensor) -> Tensor:
        return like.new_zeros(len(like), 1)


_FROZEN = (
    "was frozen after the balancer was made: requires_grad is False, so that no gradient reaches it. Call "
    "balancer.freeze() to keep the loss weights as well, or make the balancer for a layer that trains"
)
_UNREACHED = {
    False: "give a layer that this forward used, or leave shared out to have the last shared layer found; where "
    "parameters are replaced (fully_shard, parallelize_module), make the balancer after that",
    True: "a parameter that fully_shard has split is not in the graph: give the layer itself instead of its weight, "
    "or model=, or leave shared out to have the last shared layer found",
}
