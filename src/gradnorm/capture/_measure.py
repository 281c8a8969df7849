"""Each task's gradient at `W`, measured inside the user's own backward.

Hooks on the frontier (`_graph.py`) see a task's contribution before autograd adds the tasks up. As soon as a task's
last contribution to a shared node has arrived, and so before that node runs and frees its buffers, one vector–Jacobian
product takes it on to `W`; autograd prunes that product to the nodes between the two. Where the frontier leads straight
into `W` the contribution is the gradient itself.

What arrives is scaled by the weight and by whatever multiplied the balanced loss (a loss scale, 1 / accumulation
steps). The gradient that reaches the balanced loss is exactly that factor, and is kept beside the sums.

A hook may hold nodes below its own only, never itself or what is above: Python's garbage collector does not see through
the graph, and such a circle would keep it alive for good.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._errors import GraphError
from .._numerics import at_least_float32, row_norms
from .._types import Sums
from ._graph import AccumulateGrad, Graph, Meeting
from ._shared import is_distributed, whole

At = Literal["weights", "features", "branches"]


class Tally:
    """What the backwards since the last `clear` measured."""

    def __init__(self) -> None:
        self.sums: Sums | None = None
        self.backward = -1

    def begin(self, cleared: Callable[[], bool]) -> None:
        """A balanced loss goes backward; if gradients were cleared since the last backward, so is this.

        What the tally then holds (a step that a loss scaler skipped, a backward that failed) is not part of this
        step's gradient. Several balanced losses may go backward as one: gradients do not show before its end.
        """
        backward = torch._C._current_graph_task_id()
        if backward != self.backward and cleared():
            self.clear()
        self.backward = backward

    def clear(self) -> None:
        """Forget everything, as after an optimizer step."""
        self.sums = None

    def add(self, sums: Sums, at: At) -> None:
        """Add what one backward measured."""
        if self.sums is None:
            self.sums = sums
            return
        _join(self.sums.rows, sums.rows, at)
        self.sums = Sums(self.sums.rows, *(a + b for a, b in zip(self.sums[1:], sums[1:], strict=True)))


@dataclass
class Arrivals:
    """The contributions of one task to one shared node, until all of them are in."""

    task: int
    node: Any
    expected: int
    waiting: int = 0
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def reset(self) -> None:
        self.waiting = self.expected
        self.gradients = {}

    def add(self, nr: int, gradient: Tensor | None) -> None:
        self.waiting -= 1
        if gradient is not None:
            self.gradients[nr] = self.gradients[nr] + gradient if nr in self.gradients else gradient


class Pass:
    """One forward: collects the tasks' gradients during its backward, then hands itself to the tally.

    Args:
        tally: Receives the pass when every task has been measured.
        shared: `W`.
        weights: [T], those of this forward.
        losses: [T], detached; 0 for absent tasks.
        mask: [T], 1 for the tasks present and 0 for the others.
        at: Measure at `W` or at the frontier itself.
        cleared: Whether gradients were cleared since the last backward.
    """

    def __init__(
        self,
        tally: Tally,
        shared: Sequence[Tensor],
        weights: Tensor,
        losses: Tensor,
        mask: Tensor,
        at: At,
        cleared: Callable[[], bool],
    ) -> None:
        self.cleared = cleared
        self.tally = tally
        self.shared = shared
        self.weights = weights
        self.losses = losses
        self.at: At = at
        self.mask = mask
        self.factor: Tensor | None = None
        self.running = False
        self.rows: Tensor | None = None
        self.arrivals: list[Arrivals] = []
        self.remaining = 0

    def watch(self, balanced: Tensor, meetings: Sequence[Meeting], tasks: Sequence[int]) -> None:
        """Hang the hooks; `tasks` says which task each loss of the graph is."""
        crossings: dict[Any, list[tuple[int, int, Arrivals]]] = {}
        roots: list[tuple[Arrivals, int]] = []
        for meeting in meetings:
            expected = len(meeting.crossings) + (meeting.root is not None)
            arrivals = Arrivals(tasks[meeting.task], meeting.at, expected)
            self.arrivals.append(arrivals)
            if meeting.root is not None:
                roots.append((arrivals, meeting.root.nr))
            for node, edge in meeting.crossings:
                crossings.setdefault(node, []).append((edge.slot, edge.nr, arrivals))
        for node, edges in crossings.items():
            node.register_hook(partial(self._crossed, edges))
        assert balanced.grad_fn is not None
        balanced.grad_fn.register_prehook(partial(self._begin, roots))

    @torch.no_grad()
    def _begin(self, roots: Sequence[tuple[Arrivals, int]], gradients: tuple[Tensor, ...]) -> None:
        """Runs first in the backward: the factor is known, nothing has arrived."""
        compiled = sys.modules.get("torch._dynamo.compiled_autograd")  # not loaded unless somebody compiles
        if getattr(compiled, "in_compiled_autograd_region", False):
            raise GraphError(_COMPILED_AUTOGRAD)
        self.tally.begin(self.cleared)
        self.factor = gradients[0].detach()
        self.running, self.rows = True, None
        self.remaining = len(self.arrivals)
        for arrivals in self.arrivals:
            arrivals.reset()
        for arrivals, nr in roots:
            metadata = arrivals.node._input_metadata[nr]
            cotangent = (self.factor * self.weights[arrivals.task]).to(metadata.dtype).expand(metadata.shape)
            arrivals.add(nr, cotangent)
            self._measure_if_complete(arrivals)

    @torch.no_grad()
    def _crossed(self, edges: list[tuple[int, int, Arrivals]], gradients: tuple[Tensor | None, ...], _: object) -> None:
        """Runs after a frontier node of a task, with what it is about to hand on."""
        if not self.running:
            return  # this backward did not come through the balanced loss
        for slot, nr, arrivals in edges:
            arrivals.add(nr, gradients[slot])
            self._measure_if_complete(arrivals)

    def _measure_if_complete(self, arrivals: Arrivals) -> None:
        if arrivals.waiting:
            return
        if arrivals.gradients:
            piece = self._norm(arrivals) if self.at == "features" else self._row(arrivals)
            if self.rows is None:
                self.rows = piece.new_zeros(len(self.mask), piece.numel())
            _join(self.rows[arrivals.task], piece, self.at)
            arrivals.gradients = {}
        self.remaining -= 1
        if not self.remaining:
            self._finish()

    def _finish(self) -> None:
        if self.rows is None:  # every contribution was undefined: no gradient at all
            self.rows = at_least_float32(self.losses.new_zeros(len(self.mask), 1))
        assert self.factor is not None
        factors = self.factor.to(self.mask.dtype) * self.mask
        self.tally.add(Sums(self.rows, factors * self.losses, factors, self.mask), self.at)
        self.running, self.rows = False, None

    def _norm(self, arrivals: Arrivals) -> Tensor:
        """[1], of the contributions themselves."""
        flat = [at_least_float32(whole(gradient)).flatten() for gradient in arrivals.gradients.values()]
        return row_norms(torch.cat(flat).unsqueeze(0))

    def _row(self, arrivals: Arrivals) -> Tensor:
        """[N], the task's gradient at `W`, flat."""
        flat = [
            at_least_float32(_nothing(tensor) if gradient is None else whole(gradient).reshape(-1))
            for tensor, gradient in zip(self.shared, self._products(arrivals), strict=True)
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def _products(self, arrivals: Arrivals) -> Sequence[Tensor | None]:
        """The vector–Jacobian product from a shared node to each tensor of `W`; `None` where no path leads there."""
        node = arrivals.node
        if type(node) is AccumulateGrad:
            # A copy, since what arrives here may become, or be added into, the tensor's `.grad`.
            return [arrivals.gradients[0].clone() if tensor is node.variable else None for tensor in self.shared]
        try:
            return torch.autograd.grad(
                [GradientEdge(node, nr) for nr in arrivals.gradients],
                self.shared,
                list(arrivals.gradients.values()),
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            for sign, remedy in _REFUSALS.items():
                if sign in str(error):
                    raise GraphError(remedy) from error
            raise


_UNREACHED = {
    False: "give a layer that this forward used, or leave shared out to have the last shared layer found; where "
    "parameters are replaced (fully_shard, parallelize_module), make the balancer after that",
    True: "a parameter that fully_shard has split is not in the graph: give the layer itself instead of its weight, "
    "or model=, or leave shared out to have the last shared layer found",
}

_COMPILED_AUTOGRAD = (
    "compiled autograd runs this backward as one compiled graph, in which gradients of single tasks cannot be taken; "
    'leave torch._dynamo.config.compiled_autograd off, or measure with at="branches"'
)

_REENTRANT = (
    "W lies in or before a segment that is checkpointed with use_reentrant=True, where autograd forbids gradients of "
    "single tensors; use checkpoint(..., use_reentrant=False)"
)

_DONATED = (
    "torch.compile has compiled this backward for a single run (donated buffers), perhaps in an earlier process that "
    "left it in the cache, and W needs one for each task; import torch._functorch.config and set its donated_buffer "
    'to False before compiling, or leave the block that holds W uncompiled, or measure with at="branches"'
)

_REFUSALS = {"use_reentrant": _REENTRANT, "donated buffer": _DONATED}
"""By what torch's own message says."""


def _join(total: Tensor, part: Tensor, at: At) -> None:
    """At `W` gradients add up; at the features, other nodes and micro-batches are entries of a longer vector."""
    if at == "features":
        torch.hypot(total, part, out=total)
    else:
        total.add_(part)


def _nothing(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.numel(), dtype=tensor.dtype, device=tensor.device)


def measure(
    balanced: Tensor,
    graph: Graph,
    tasks: Sequence[int],
    into: Pass,
    names: Sequence[str],
) -> None:
    """Arrange that the backward of `balanced` measures each task of `graph` for `into`.

    Args:
        balanced: The scalar that the user will call `backward` on, or whose descendant.
        graph: Of the losses present.
        tasks: The task of each of the graph's losses.
        into: The pass, which knows `W`.
        names: Of all tasks, for messages.

    Raises:
        GraphError: `W` is not in the graph, or a task does not reach it.
    """
    meetings = graph.meetings(into.shared)
    reached = {meeting.task for meeting in meetings}
    if len(reached) < len(tasks) and any(type(node).__name__ == "CheckpointFunctionBackward" for node in graph.tasks):
        raise GraphError(_REENTRANT)
    if not reached:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in into.shared)
        raise GraphError(
            f"shared: no loss reaches W (shape {shapes}); {_UNREACHED[any(map(is_distributed, into.shared))]}"
        )
    for position, task in enumerate(tasks):
        if position not in reached:
            raise GraphError(
                f"the loss of task {names[task]!r} does not reach W; "
                "give as shared a layer that all tasks use, or leave the task out of the balancer"
            )
    into.watch(balanced, meetings, tasks)
