"""The first look: decisions at the start of the first backward, before anything else runs in it.

Two things must be known before the first gradient reaches an optimizer: whether the detected layer is shared (a head
whose output was joined with others looks shared in the graph), and how large the tasks' gradients are, so that the
first step can be balanced. Both are determined by running the heads' backward once more, with the same hooks. While no
gradient reaches the layer at all, the layers before it tell the latter, by a backward of the whole network; where that
may run only once, nothing is said of them.

It runs here, and not in the forward, for two reasons: gradients carry the loss scale that half precision needs, and DDP
would mistake a backward that it has not prepared for its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._errors import GraphError, warn
from .._torch_private import without_hooks
from ._backward_pass import BackwardPass
from ._collectors import Edge
from ._detected import DetectedLayer, without_gradient
from ._graph import AutogradGraph
from ._looks import look
from ._measurement import Opening, Sums
from ._operations import TOLERANCE, Path, kind
from ._products import refusal
from ._rows import WholeRows

PATIENCE = 10
"""Steps after which a layer is taken or left as it is; a warm-up may start with a learning rate of zero."""


class FirstLook:
    """Determines the detected layer, and the weights of the first step.

    Args:
        graph: The graph of the losses; kept until the backward begins.
        opening: What to determine.
    """

    def __init__(self, graph: AutogradGraph, opening: Opening) -> None:
        self._graph = graph
        self._opening = opening
        self._has_run = False

    def take(self, one: BackwardPass, factor: Tensor, _: Tensor) -> None:
        """Run the first look, and leave `one` ready to measure at the resulting layer."""
        layer = one.measurement.layer
        one.shared = first = layer.locate(self._graph, one.tasks)
        sums = self._settle(one, layer, factor) if isinstance(layer, DetectedLayer) and not layer.is_confirmed else None
        if list(map(id, one.shared)) != list(map(id, first)):
            one.measurement.discard()
        self._opening.look(one.tasks, one.measurement.sums, lambda: sums or self._measured(one, factor))
        one.frontiers = self._graph.frontiers([shared.used for shared in one.shared])

    def _settle(self, one: BackwardPass, layer: DetectedLayer, factor: Tensor) -> Sums | None:
        """Move to earlier layers while the detected one is a head; look beyond it while it is asleep."""
        self._opening.check(layer)
        sums = self._measured(one, factor)
        if sums is None or not one.measurement.has_cosines:
            layer.settle(one.shared)
            return sums
        if not bool(torch.isfinite(sums.entries).all()):
            return sums  # numbers that say nothing: the next backward looks again
        idle = self._idle(one, layer, factor, sums)
        sums = self._above_heads(one, layer, factor, sums, idle)
        if sums is not None and not bool(sums.entries.any()) and not idle.equal(sums.counts > 0):
            return self._while_asleep(one, layer, factor, sums, idle)
        if layer.is_decided(one.shared) or self._has_waited(one, layer):
            layer.settle(one.shared)
        return sums

    def _has_waited(self, one: BackwardPass, layer: DetectedLayer) -> bool:
        return layer.waited_steps(one.shared, self._opening.undecided) > PATIENCE

    def _above_heads(
        self, one: BackwardPass, layer: DetectedLayer, factor: Tensor, sums: Sums, idle: Tensor
    ) -> Sums | None:
        """Move to earlier layers while these are heads, back to these if all are; returns the sums there."""
        first, found = one.shared, sums
        while found is not None and bool(torch.isfinite(found.entries).all()):
            moving = (found.counts > 0) & ~idle
            layer.note_use(found.entries[moving], moving.nonzero()[:, 0].tolist(), one.shared)
            if not (heads := layer.heads_among(one.shared)):
                break
            one.shared = layer.look_further_up(self._graph, heads)
            if not one.shared:
                one.shared, found = first, sums
                break
            found = self._measured(one, factor)
        return found

    def _while_asleep(
        self, one: BackwardPass, layer: DetectedLayer, factor: Tensor, sums: Sums, idle: Tensor
    ) -> Sums | None:
        """The sums at the next layers before `W` at which there is a gradient, to balance the first step by.

        At `W` there is none, as in a residual branch that is multiplied by zero at first. A step of the optimizer ends
        that, and `W` is settled then; if `PATIENCE` steps have not, it is a dead end, and these layers are `W`.
        """
        asleep, has_waited = one.shared, self._has_waited(one, layer)
        is_wanted = bool((sums.counts > 0).all()) and self._opening.awaits(one.tasks, False)
        with layer.provisionally():
            found = self._beyond(one, layer, factor, idle) if is_wanted or has_waited else None
            if found is not None and has_waited:
                layer.settle(one.shared)
                return found
        one.shared = asleep
        if has_waited:
            layer.settle(asleep)
        return sums if found is None else found

    def _beyond(self, one: BackwardPass, layer: DetectedLayer, factor: Tensor, idle: Tensor) -> Sums | None:
        """Move to the last layers at which there is a gradient; `None` if there are none."""
        candidates = layer.within_reach(self._graph, one.shared)
        gradients = self._gradients(self._graph.losses, candidates, factor)
        further = layer.look_further_up(self._graph, without_gradient(candidates, gradients)) if gradients else ()
        try:
            self._opening.check(layer)
        except GraphError:  # other processes have other layers: all keep `W`
            return None
        if not further:
            return None
        one.shared = further
        sums = self._measured(one, factor)
        return None if sums is None else self._above_heads(one, layer, factor, sums, idle)

    def _idle(self, one: BackwardPass, layer: DetectedLayer, factor: Tensor, sums: Sums) -> Tensor:
        """Bool [T], the tasks whose gradient is zero at all layers, as where a head starts at zero."""
        idle = (sums.counts > 0) & (sums.entries == 0).all(1)
        if not bool(idle.any()):
            return idle
        moved = torch.zeros_like(sums.losses)
        candidates = layer.within_reach(self._graph, one.shared)
        for edge, task in zip(self._graph.losses, one.tasks, strict=True):
            if idle[task]:
                found = self._gradients([edge], candidates, factor)
                moved[task] = float(any(bool(each.any()) for each in found if each is not None))
        idle &= self._reduced(sums, moved) == 0
        if bool(idle.any()) and not layer.has_told_idle:
            layer.has_told_idle = True
            names = [name for name, quiet in zip(one.measurement.names, idle.tolist(), strict=True) if quiet]
            warn(
                f"the gradient of {', '.join(names)} is exactly zero at every layer that all tasks share. If a head "
                "starts at zero this is temporary; otherwise check how that loss depends on the network"
            )
        return idle

    def _gradients(self, edges: Sequence[Edge], layers: Sequence[Tensor], factor: Tensor) -> Sequence[Tensor | None]:
        """The gradients of the sum of these losses at these layers; empty where autograd refuses."""
        try:
            return _run(edges, layers, [factor] * len(edges)) if layers else ()
        except RuntimeError as error:
            if refusal(error) is None:
                raise
            return ()

    def _reduced(self, sums: Sums, values: Tensor) -> Tensor:
        """[T], summed over the processes that share the batch."""
        return self._opening.reduce(sums._replace(entries=values.unsqueeze(1))).entries[:, 0]

    def _measured(self, one: BackwardPass, factor: Tensor) -> Sums | None:
        """The sums at `one.shared` with all weights 1; `None` where the heads cannot run twice."""
        one.frontiers = self._graph.frontiers([shared.used for shared in one.shared])
        is_by_loss = one.is_by_loss(self._graph)
        if not is_by_loss:
            one.watch()
        try:
            sums = self._by_loss(one, factor) if is_by_loss else self._look(one, factor)
            if sums is not None and one.measurement.check and self._is_foreign and not is_by_loss:
                self._compare(sums, self._look(one, factor))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if isinstance(error, GraphError):
                raise
            if not isinstance(error, RuntimeError) or refusal(error) is None:
                if not self._has_run:
                    raise  # as without a first look
                raise GraphError(_ONCE) from error
            warn(UNSEEN)
            self._opening.abandon()
            return None
        finally:
            one.unwatch()
        if sums is None:
            return None
        if one.measurement.check and not any(
            type(node).__name__ == "BalancedLossBackward" for node in self._graph.children_first
        ):
            one.looks[tuple(map(id, one.shared))] = sums  # another balancer's weights may change before the losses run
            one.measurement.outsiders.has_looked()
        return self._opening.reduce(sums)

    def _look(self, one: BackwardPass, factor: Tensor) -> Sums | None:
        sums = _taken(self._graph, one, factor, torch.ones_like(one.mask))
        self._has_run = True
        return sums

    def _by_loss(self, one: BackwardPass, factor: Tensor) -> Sums:
        found = one.by_loss(self._graph, factor, torch.ones_like(one.mask), WholeRows(len(one.mask)))
        self._has_run = True
        return found

    @functools.cached_property
    def _is_foreign(self) -> bool:
        """Whether a function is not torch's own, so that it may give another result when it runs again."""
        return _is_foreign(self._graph)

    def _compare(self, one: Sums, other: Sums | None) -> None:
        if other is None or not bool(torch.isfinite(one.entries).all()):
            return
        apart = (one.entries - other.entries).norm(dim=1) > TOLERANCE * one.entries.norm(dim=1)
        if bool(apart.any()):
            raise GraphError(_ONCE)


def look_again(graph: AutogradGraph, one: BackwardPass, factor: Tensor, weights: Tensor) -> None:
    """Run the losses alone, to be compared with what arrives: by now something else may run backward with them.

    By the weights of this backward, so that rounding is the same. Where that is impossible nothing is said, and it is
    not tried again.
    """
    if _is_foreign(graph) or one.is_by_loss(graph):
        return
    one.watch()
    try:
        if (sums := _taken(graph, one, factor, weights)) is not None:
            one.looks[tuple(map(id, one.shared))] = sums
    except Exception:  # also for memory, since training goes on without it
        one.measurement.outsiders.stop_looking()
    finally:
        one.unwatch()
    one.frontiers = graph.frontiers([shared.used for shared in one.shared])


def _taken(graph: AutogradGraph, one: BackwardPass, factor: Tensor, weights: Tensor) -> Sums | None:
    """The sums at `one.shared`, by a backward of the losses alone."""
    one.start(factor, weights, None)
    _run(graph.losses, one.edges(), [factor * weights[task] for task in one.tasks])
    return one.finish()


def _run(
    edges: Sequence[Edge], inputs: Sequence[Tensor | GradientEdge], factors: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """The gradients of the sum of these losses, each times its factor, in a backward without side effects."""
    with without_hooks(each for each in inputs if isinstance(each, Tensor)):
        return look(edges, inputs, factors)


def _is_foreign(graph: AutogradGraph) -> bool:
    """Whether a function is not torch's own, so that it may give another result when it runs again."""
    return any(kind(node) is Path.FOREIGN for node in graph.children_first)


_ONCE = (
    "the first step runs the heads' backward twice, to determine W and the starting weights, and a function there can "
    "run only once, or overwrites its saved tensors; give the layer with shared= and initial_weights=None, which need "
    "no second run"
)

UNSEEN = (
    "GradNorm could not run the first look at the first backward: weights start from ones, and a detected layer is "
    "not checked. Heads that are checkpointed need use_reentrant=False, heads that are compiled need "
    "torch._functorch.config.donated_buffer = False before compiling; or give shared= and initial_weights="
)
