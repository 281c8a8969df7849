"""Each task's gradient, measured inside the user's own backward.

Hooks on the frontier (`_graph.py`) see a task's contribution before autograd adds the tasks up. As soon as a task's
last contribution to a shared node has arrived, and so before that node runs and frees its buffers, one vector–Jacobian
product propagates it to `W` (small ones are batched once the last task has arrived); autograd prunes that product to
the nodes between the two. Where the frontier leads straight into `W` the contribution is the gradient itself.

What arrives is scaled by the weight and by whatever multiplied the balanced loss (a loss scale, 1 / accumulation
steps). The gradient that reaches the balanced loss is exactly that factor, and is kept beside the sums.

A hook may reference only nodes nearer the leaves: Python's garbage collector does not see a cycle through the C++
graph, so it would leak. Hooks are therefore registered when the backward begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._errors import warn
from .._torch_private import current_backward, never_compiled, output_shape, watch_hooks
from ._alone import Alone, taken_alone
from ._by_loss import gradients_of, is_faster_by_loss
from ._graph import AccumulateGrad, AutogradGraph, FrontierEdge, TaskFrontier
from ._measurement import Opening, Sums, Wanted
from ._meetings import AtMeetings, GradientBuffer, Meeting
from ._operations import FINE_TOLERANCE, TOLERANCE
from ._rows import RowNorms, Rows, WholeRows
from ._self_check import adds_up
from ._shared import SharedParameter, dense, is_distributed

_NONE = -1
"""Identifier of no backward."""

_BESIDES = (
    "more than the balanced loss runs backward through what belongs to {0} alone (a second loss on its output, a "
    "penalty, another balancer), and its gradient counts as the task's. Add it to the task's loss, or run it in a "
    "separate backward"
)

_HOOKED = (
    "a hook on {} sets parts of its gradient to zero, and the tasks' gradients are measured before that, with these "
    "parts. Freeze them in the forward, where it is seen: mask * W + (1 - mask) * W.detach()"
)

Arriving = Sequence[tuple[FrontierEdge, GradientBuffer, Meeting]]
TakeLook = Callable[["BackwardPass", Tensor, Tensor], None]
"""Called as `(backward pass, factor, weights)` at the start of a backward; leaves the pass ready to measure."""


class BackwardPass:
    """Collects the tasks' gradients in the backward of one forward's losses, then adds them to the measurement.

    Args:
        measurement: The measurement to add to.
        tasks: `tasks[i]` is the task index of the graph's i-th loss.
        losses: [T], detached; 0 for absent tasks.
        mask: [T], 1 for the tasks present and 0 for the others.
        wanted: Quantities needed beside norms.
    """

    def __init__(
        self, measurement: AtMeetings, tasks: Sequence[int], losses: Tensor, mask: Tensor, wanted: Wanted
    ) -> None:
        self.measurement = measurement
        self.tasks = tasks
        self.losses = losses
        self.mask = mask
        self.wanted = wanted
        self.shared: Sequence[SharedParameter] = ()
        self.frontiers: Sequence[TaskFrontier] = ()
        self.first_look: TakeLook | None = None
        self.opening: Opening | None = None
        self.graph: AutogradGraph | None = None
        self._alone: Alone = {}
        self._meetings: list[Meeting] = []
        self._roots: list[tuple[FrontierEdge, GradientBuffer, Meeting]] = []
        self._handles: list[Any] = []
        self._remaining = 0
        self._factor: Tensor | None = None
        self._rows: Rows | None = None
        self._is_look = False
        self._is_narrow = False
        self._has_run = False
        self._weights = mask
        self.looks: dict[tuple[int, ...], Sums] = {}
        self._backward: int | None = _NONE

    def begin(self, factor: Tensor, weights: Tensor) -> Tensor:
        """Runs first in the backward, when the factor is known; returns the weights of this backward."""
        if not self.measurement.begin(self._has_run):
            return weights
        self._has_run = True
        if self.first_look is not None:
            look, self.first_look = self.first_look, None
            look(self, factor, weights)
        if self.opening is not None and self.opening.weights is not None:
            weights = self.opening.weights
        if self.graph is not None and self.is_by_loss(self.graph):
            rows = self._new_rows(dict.fromkeys(self.tasks, 1))
            self.measurement.add(self.by_loss(self.graph, factor, weights, rows, check=self.measurement.check))
            return weights
        if self.measurement.watches_hooks:
            self._watch_hooks()
        graph, self.graph = self.graph, None  # hooks must not lead to it
        alone = self._losses_alone(graph, factor, weights)
        if self.frontiers:
            self.watch()
        self.start(factor, weights, current_backward())
        self._alone = alone
        return weights

    def is_by_loss(self, graph: AutogradGraph) -> bool:
        """Whether to run a backward of each loss rather than products from where tasks meet."""
        is_split = any(is_distributed(each) for part in self.shared for each in (part.parameter, part.used))
        is_possible = self.measurement.takes_products and self.measurement.may_run_twice and not is_split
        return is_possible and is_faster_by_loss(graph, self.frontiers, self._used)

    def by_loss(self, graph: AutogradGraph, factor: Tensor, weights: Tensor, rows: Rows, check: bool = False) -> Sums:
        """The sums by a backward of each loss, with their rows; without effect on anything else.

        Raises:
            RuntimeError: Autograd refuses it.
            GraphError: The losses' gradients do not add up to that of their sum.
        """
        factors = [factor * weights[task] for task in self.tasks]
        found = [gradients_of([loss], self._used, [c]) for loss, c in zip(graph.losses, factors, strict=True)]
        if check and adds_up(found, self._used, lambda: gradients_of(graph.losses, self._used, factors)):
            self.measurement.check = False
        for task, gradients in zip(self.tasks, found, strict=True):
            rows.add([task], self.measurement.layer.laid_out(gradients, self.shared).unsqueeze(0))
        return self._sums(rows, factor, weights)

    def _watch_hooks(self) -> None:
        """Warn if a hook on `W` takes parts of its gradient away in this backward; one that clips is left alone."""
        self.measurement.watches_hooks = False
        layer = self.measurement.layer
        for part, name in zip(layer.parameters, layer.names, strict=True):
            if part.used.is_leaf and part.used._backward_hooks and not is_distributed(part.used):
                watch_hooks(part.used, partial(_compare, name))

    @property
    def _used(self) -> list[Tensor]:
        return [part.used for part in self.shared]

    def _losses_alone(self, graph: AutogradGraph | None, factor: Tensor, weights: Tensor) -> Alone:
        """The gradients of tasks that meet no other, where losses outside the balancer may add to what arrives."""
        if graph is None or not (due := self.measurement.outsiders.due(self.tasks, bool(self.looks))):
            return {}
        return taken_alone(graph.unmixed(), self.frontiers, self._used, due, lambda i: factor * weights[self.tasks[i]])

    def watch(self) -> None:
        """Register the hooks."""
        meetings: dict[Any, Meeting] = {}
        edges: dict[Any, list[tuple[FrontierEdge, GradientBuffer, Meeting]]] = {}
        for frontier in self.frontiers:
            meeting = meetings.setdefault(frontier.at, Meeting(frontier.at, frontier.path))
            buffer = GradientBuffer(self.tasks[frontier.task], len(frontier.edges) + (frontier.root is not None))
            meeting.buffers.append(buffer)
            meeting.outputs |= frontier.outputs
            if frontier.root is not None:
                self._roots.append((FrontierEdge(frontier.at, 0, frontier.root.nr, is_direct=False), buffer, meeting))
            for node, edge in frontier.edges:
                edges.setdefault(node, []).append((edge, buffer, meeting))
        self._meetings = list(meetings.values())
        crossed = never_compiled(self._crossed)
        self._handles = [node.register_hook(partial(crossed, arriving)) for node, arriving in edges.items()]
        self.frontiers = ()

    def edges(self) -> list[GradientEdge | Tensor]:
        """The nodes where the tasks meet, which a backward must reach to measure them."""
        return [
            meeting.node.variable if type(meeting.node) is AccumulateGrad else GradientEdge(meeting.node, nr)
            for meeting in self._meetings
            for nr in sorted(meeting.outputs)
        ]

    def unwatch(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._meetings, self._roots, self._backward = [], [], [], _NONE

    def start(self, factor: Tensor, weights: Tensor, backward: int | None) -> None:
        """Expect the tasks' gradients, scaled by `factor` and `weights`.

        Args:
            factor: [].
            weights: [T].
            backward: Identifier of the backward; `None` for a first look, a separate backward that has not begun.
        """
        self._factor, self._weights, self._alone = factor, weights, {}
        self._backward = backward
        self._is_look = backward is None
        self._rows = None
        self._remaining = 0
        for meeting in self._meetings:
            meeting.reset()
            self._remaining += len(meeting.buffers)
        for edge, buffer, meeting in self._roots:
            buffer.add(edge.to, edge, (factor * weights[buffer.task]).expand(output_shape(edge.to, edge.nr)))
            self._arrived(meeting, buffer)

    def finish(self) -> Sums | None:
        """The measured sums; `None` if no gradient arrived, as in a backward to parts of the heads only."""
        rows, self._rows, self._backward, self._alone = self._rows, None, _NONE, {}
        if rows is None or self._factor is None:
            return None
        sums = self._sums(rows, self._factor, self._weights)
        if not self._is_look:
            self._compare_with_look(sums)
            self.measurement.check &= not all(each.check and each.check.has_passed for each in self._meetings)
        return sums

    def _sums(self, rows: Rows, factor: Tensor, weights: Tensor) -> Sums:
        factors = factor.to(self.mask.dtype) * self.mask
        entries, products = rows.taken()
        is_complete = len(self.tasks) == len(self.mask)
        scales = factors * weights
        return Sums(entries, factors * self.losses, factors, self.mask, scales, products, is_complete, rows.are_whole)

    def _compare_with_look(self, sums: Sums) -> None:
        """Warn if more than its loss runs backward through a task's head; a look has seen the loss alone."""
        if (look := self.looks.get(tuple(map(id, self.shared)))) is None:
            return
        scales = sums.scales / look.scales  # a first look takes weights of one
        found, alone = self.measurement.norms(sums), self.measurement.norms(look) * scales.abs()
        tolerance = TOLERANCE if self._is_narrow else FINE_TOLERANCE
        apart = (found - alone).abs() > tolerance * torch.maximum(found, alone)
        if bool((apart & torch.isfinite(found + alone)).any()):
            names = ", ".join(
                name for name, is_apart in zip(self.measurement.names, apart.tolist(), strict=True) if is_apart
            )
            warn(_BESIDES.format(names))
            self.measurement.outsiders.stop_looking()

    def _crossed(self, arriving: Arriving, gradients: tuple[Tensor | None, ...], _: object) -> None:
        """Hook of a frontier node: receives the gradients that it is about to propagate."""
        if self._backward != (backward := current_backward()):
            if self._backward is not None:
                return  # this backward did not come through the balanced loss
            self._backward = backward
        for edge, buffer, meeting in arriving:
            buffer.add(meeting.node, edge, gradients[edge.slot])
            self._arrived(meeting, buffer)

    def _arrived(self, meeting: Meeting, buffer: GradientBuffer) -> None:
        """Measure the tasks that are complete, if this was a task's last contribution to a node."""
        if buffer.waiting:
            return
        meeting.waiting -= 1
        if not self._is_batched(meeting, buffer):
            self._measure(meeting, [buffer])
        elif not meeting.waiting:
            self._measure(meeting, meeting.buffers)
        self._remaining -= 1
        if not self._remaining and not self._is_look:
            with torch.no_grad():
                if (sums := self.finish()) is not None:
                    self.measurement.add(sums)

    def _is_batched(self, meeting: Meeting, buffer: GradientBuffer) -> bool:
        if meeting.is_batched is None and buffer.gradients:
            device = next(iter(buffer.gradients.values())).device
            meeting.is_batched = self.measurement.can_be_batched(meeting, self.shared, device)
        return bool(meeting.is_batched)

    @torch.no_grad()
    def _measure(self, meeting: Meeting, buffers: Sequence[GradientBuffer]) -> None:
        """Propagate the contributions of these tasks to `W`, and add them."""
        full = [buffer for buffer in buffers if buffer.gradients]
        if full:
            if self._rows is None:
                self._rows = self._new_rows(Counter(each.task for of in self._meetings for each in of.buffers))
            if self.looks:  # to be compared with
                dtypes = [gradient.dtype for buffer in full for gradient in buffer.gradients.values()]
                self._is_narrow |= any(torch.promote_types(dtype, torch.float32) != dtype for dtype in dtypes)
            rows = self.measurement.entries(meeting, [buffer.gradients for buffer in full], self.shared)
            rows = self._of_losses_alone(meeting, full, rows) if self._alone else rows
            self._rows.add([buffer.task for buffer in full], rows)
            for buffer in full:
                buffer.gradients = {}
        if not meeting.waiting and meeting.check is not None:
            meeting.check.finish()

    def _of_losses_alone(self, meeting: Meeting, buffers: Sequence[GradientBuffer], rows: Tensor) -> Tensor:
        """The entries of these tasks, without what losses outside the balancer have added."""
        alone = [self._alone.get((self.tasks.index(buffer.task), meeting.node)) for buffer in buffers]
        if not any(alone):
            return rows
        found = [own or buffer.gradients for buffer, own in zip(buffers, alone, strict=True)]
        entries = self.measurement.entries(meeting, found, self.shared)
        for buffer, own, row, entry in zip(buffers, alone, rows, entries, strict=True):
            if own:
                self.measurement.outsiders.compare(buffer.task, row, entry)
        return entries

    def _new_rows(self, expected: Mapping[int, int]) -> Rows:
        """For so many contributions to each task's row."""
        if self._is_look or self.wanted.rows or self.measurement.adds_up:
            return WholeRows(len(self.mask))
        return RowNorms(len(self.mask), expected, self.wanted.products)


def _compare(name: str, before: Tensor, after: Tensor) -> None:
    """A hundredth of the entries, since what is scaled down in half precision may vanish here and there."""
    one, other = dense(before), dense(after)
    taken_away = (other == 0) & (one != 0) & torch.isfinite(one)
    if float(taken_away.float().mean()) > 0.01:
        warn(_HOOKED.format(name))
