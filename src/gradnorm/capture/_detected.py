"""`W` as detected in the graph.

The paper takes the last shared layer. In a graph that is **every parameter with two or more dimensions above one that
all tasks reach, and that no other such parameter follows** on the way to the losses: one layer where all is shared up
to the heads; all of them where parts stand side by side (experts, towers, pyramid levels).

A graph does not show whether a task's gradient there is nonzero. A layer at which a task's gradient is exactly zero, or
shares no entry with any other task's, is a head whose output was joined with others: the layers before it are examined
instead. One at which all gradients are zero may be asleep, and is given some steps, as is one at which a single task
has had a gradient so far, where tasks come in turn.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GraphError
from .._torch_private import weakly_keyed
from ._graph import AutogradGraph
from ._layers import last_layers
from ._operations import Path, kind
from ._shared import SharedLayer, SharedParameter, entry_count

MOST_GROWTHS = 64
"""Maximum number of graphs in a row that add to `W`: with more, parameters are replaced, and it is no mixture of
experts."""

_log = logging.getLogger("gradnorm")


class DetectedLayer(SharedLayer):
    """`W` as detected in the graphs, once these have shown every declared task.

    Which tasks reach a parameter is added up over the graphs, so that a batch may lack tasks. A graph whose leaves are
    not those of the one before (another expert was chosen), or in which a task does not reach what was found (a
    detector's batch without large boxes), is looked at again. Parts of `W` that are new are settled like the first.

    Args:
        tasks: Names of the declared tasks.
        names: Of the model's parameters, as far as they are known.
    """

    def __init__(self, tasks: Sequence[str], names: Mapping[nn.Parameter, str]) -> None:
        super().__init__((), names)
        self.is_confirmed = False
        self._tasks = tuple(tasks)
        self._seen = 0
        self._announced = False
        self._users = _Users(len(tasks))
        self._heads: dict[Tensor, None] = {}
        self._entries: dict[Tensor, dict[int, Tensor]] = {}  # at which each task has had a gradient
        self._waited: Counter[Tensor] = Counter()
        self.has_told_idle = False
        self._settled: tuple[SharedParameter, ...] = ()
        self._looked_at: tuple[int, ...] = ()
        self._here: list[SharedParameter] = []

    @property
    def called(self) -> str:
        return f"the detected layer ({', '.join(self.described)})"

    @property
    def awaited(self) -> list[str]:
        """The declared tasks that no graph has shown yet."""
        return [task for i, task in enumerate(self._tasks) if not self._seen >> i & 1]

    def locate(self, graph: AutogradGraph, tasks: Sequence[int]) -> Sequence[SharedParameter]:
        leaves = tuple(map(id, graph.leaves))
        if self._here and leaves == self._looked_at and self._is_reached(graph, [each.used for each in self._here]):
            return self._here
        self._note(graph, tasks)
        if self.awaited:
            self._announce_wait()
            return []
        last = self._last(graph)
        if not last and not self.parameters:
            raise GraphError(
                "no layer is shared: of the parameters with two or more dimensions, none is reached by every loss; "
                f"{self._remedy(graph, tasks)}"
            )
        self._looked_at, self._here = leaves, self._known(last)
        return self._here or self.parameters

    def candidates(self, graph: AutogradGraph) -> list[Tensor]:
        """The layers in this graph that all declared tasks use and that are no heads."""
        return [leaf for leaf in self._users.common(graph.leaves) if leaf not in self._heads]

    def within_reach(self, graph: AutogradGraph, shared: Sequence[SharedParameter]) -> list[Tensor]:
        """The candidates down to which a backward runs nothing twice that may run only once, but for heads of these."""
        wanted, to_shared, blocked = {id(part.used) for part in shared}, set(), set()
        for node in graph.children_first:
            ends = {id(edge.to.variable) for edge in graph.ends.get(node, ())}
            if ends & wanted or any(edge.to in to_shared for edge in graph.inner[node]):
                to_shared.add(node)
        for node in reversed(graph.children_first):
            if node in blocked or (kind(node) is Path.FOREIGN and node not in to_shared):
                blocked |= {node, *(edge.to for edge in graph.inner[node])}
        return [leaf for leaf in self.candidates(graph) if blocked.isdisjoint(graph.leaves[leaf])]

    def look_further_up(self, graph: AutogradGraph, heads: Sequence[Tensor]) -> Sequence[SharedParameter]:
        """As `locate`, without the parameters that proved to be heads; empty if none remains."""
        self._heads.update(dict.fromkeys(heads))
        taken = self._last(graph)
        self.parameters = self._settled
        self._here = self._known(taken)
        return self._here

    def waited_steps(self, parameters: Sequence[SharedParameter], counted: set[Tensor]) -> int:
        """How many steps these have been undecided; `counted` are the parts that this step has added."""
        parts = {part.parameter for part in parameters}
        self._waited.update(parts - counted)
        counted |= parts
        return min(self._waited[part] for part in parts)

    def note_use(self, gradients: Tensor, tasks: Sequence[int], shared: Sequence[SharedParameter]) -> None:
        """Note at which entries these tasks have a gradient.

        Args:
            gradients: [K, N], flat, in the order of all of `W`.
            tasks: The K tasks.
            shared: The parts that the graph shows.
        """
        here = {part.parameter for part in shared}
        columns = (gradients != 0).split([entry_count(part.parameter) for part in self.parameters], 1)
        for part, used in zip(self.parameters, columns, strict=True):
            if part.parameter in here and bool(used.any()):  # or it may be asleep
                self._entries.setdefault(part.parameter, {}).update(zip(tasks, used, strict=True))

    def is_decided(self, shared: Sequence[SharedParameter]) -> bool:
        """Whether enough tasks have had a gradient at these parts to tell heads."""
        users = [len(self._entries[part.parameter]) for part in shared if part.parameter in self._entries]
        return min(users, default=0) >= min(2, len(self._tasks))

    @contextmanager
    def provisionally(self) -> Iterator[None]:
        """Context after which all is as before, unless the layer was settled."""
        heads, parameters, here = dict(self._heads), self.parameters, self._here
        try:
            yield
        finally:
            if not self.is_confirmed:
                self._heads, self.parameters, self._here = heads, parameters, here

    def heads_among(self, shared: Sequence[SharedParameter]) -> list[Tensor]:
        """Which of these parts of `W` are heads, by what `note_use` has noted; not those that were settled before."""
        told = [part for part in shared if len(self._entries.get(part.parameter, ())) > 1]
        if not told:
            return []
        known = [self._entries[part.parameter] for part in told]
        nothing = [torch.zeros_like(next(iter(each.values()))) for each in known]
        users = sorted({task for each in known for task in each})
        used = [torch.cat([each.get(task, no) for each, no in zip(known, nothing, strict=True)]) for task in users]
        settled = {part.parameter for part in self._settled}
        return [head for head in heads_among(torch.stack(used), told) if head not in settled]

    def settle(self, parameters: Sequence[SharedParameter]) -> None:
        """Set `W` to these, overriding earlier decisions."""
        for shared in parameters:
            self._heads.pop(shared.parameter, None)
        before = {shared.parameter for shared in self._settled}
        self._settled += tuple(shared for shared in parameters if shared.parameter not in before)
        self.parameters = self._settled
        self._here = list(parameters)
        self.is_confirmed = True
        self._entries.clear()
        _log.info("gradients are compared at the detected layer: %s; see shared=", ", ".join(self.described))

    def _announce_wait(self) -> None:
        if not self._announced:
            self._announced = True
            _log.info(
                "the shared layer is detected once every task has been seen; until then nothing is measured. "
                "Missing so far: %s. To start at once, name the layer with shared=",
                ", ".join(self.awaited),
            )

    def _remedy(self, graph: AutogradGraph, tasks: Sequence[int]) -> str:
        """What to do where no layer is shared: what is shared, or the tasks that keep the others from having one."""
        parameters = [leaf for leaf in graph.leaves if isinstance(leaf, nn.Parameter)]
        reached = functools.reduce(operator.or_, map(graph.reach, parameters), 0)
        if astray := [self._tasks[task] for i, task in enumerate(tasks) if not reached >> i & 1]:
            return (
                f"the loss of {', '.join(astray)} reaches no nn.Parameter: check that it comes from the network, or "
                "name tensors as shared="
            )
        if smaller := [leaf for leaf in parameters if _is_reached_by_all(graph, leaf)]:
            return f"smaller ones are ({', '.join(self._describe(smaller[-3:]))}): give one as shared="
        together = self._users.together
        if together.bit_count() < 2:
            return (
                "check that all losses come from one network, of which no frozen layer counts, or name the shared "
                "parameters with shared="
            )
        apart = ", ".join(task for i, task in enumerate(self._tasks) if not together >> i & 1)
        return (
            f"the others share one that the loss of {apart} does not reach: if that is meant, leave {apart} out of the "
            "balancer and add its loss to the balanced one, or name the shared parameters with shared="
        )

    def _last(self, graph: AutogradGraph) -> list[Tensor]:
        candidates, heads = self.candidates(graph), [head for head in self._heads if head in graph.leaves]
        uses = self._users.by_node(graph)
        last = last_layers(graph, candidates, heads, uses)
        if last and not self._is_reached(graph, last):
            by_all = [leaf for leaf in candidates if graph.reach(leaf, uses) == graph.everyone]
            last = last_layers(graph, by_all, heads, uses) or last
        return last

    def _is_reached(self, graph: AutogradGraph, leaves: Sequence[Tensor]) -> bool:
        """Whether every loss of a graph uses one of these."""
        uses = self._users.by_node(graph)
        return functools.reduce(operator.or_, (graph.reach(leaf, uses) for leaf in leaves), 0) == graph.everyone

    def _note(self, graph: AutogradGraph, tasks: Sequence[int]) -> None:
        self._users.note(graph, tasks)
        for task in tasks:
            self._seen |= 1 << task

    def _known(self, tensors: Sequence[Tensor]) -> list[SharedParameter]:
        """These as parts of `W`, to which new ones are added."""
        known = set(self.tensors)
        fresh = [SharedParameter(each, each) for each in tensors if each not in known]
        if self.is_confirmed:
            self.growths = self.growths + 1 if fresh else 0
            self.is_confirmed = not fresh
        if self.growths > MOST_GROWTHS:
            raise GraphError(
                f"the shared layer has been another one in {self.growths} graphs: where parameters are replaced in "
                "each step (functional_call), replace what they hold instead; otherwise name the layer with shared="
            )
        self.parameters += tuple(fresh)
        return [shared for shared in self.parameters if any(shared.parameter is each for each in tensors)]


class _Users:
    """The tasks that use each layer, as bit masks, added up over the graphs.

    What a loss reads for a penalty alone is no use, unless all tasks use no layer together.
    """

    def __init__(self, tasks: int) -> None:
        self._everyone = (1 << tasks) - 1
        self._reached_by = weakly_keyed({})
        self._used_by = weakly_keyed({})

    @property
    def together(self) -> int:
        """The most tasks that reach the same layer."""
        return max(self._reached_by.values(), key=int.bit_count, default=0)

    def note(self, graph: AutogradGraph, tasks: Sequence[int]) -> None:
        """Add those of a graph, whose i-th loss is that of `tasks[i]`."""
        for known, by in ((self._used_by, graph.uses), (self._reached_by, graph.tasks)):
            for leaf in filter(_is_layer, graph.leaves):
                mask = graph.reach(leaf, by)
                for position, task in enumerate(tasks):
                    if mask >> position & 1:
                        known[leaf] = known.get(leaf, 0) | 1 << task

    def common(self, leaves: Iterable[Tensor]) -> list[Tensor]:
        """Those of the leaves that are layers which all tasks use."""
        known = self._used_by if self._are_used else self._reached_by
        return [leaf for leaf in leaves if known.get(leaf) == self._everyone]

    def by_node(self, graph: AutogradGraph) -> Mapping[Any, int]:
        """The mask of the losses in a graph, for each node that reads leaves."""
        return graph.uses if self._are_used else graph.tasks

    @property
    def _are_used(self) -> bool:
        return self._everyone in self._used_by.values()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reached_by": dict(self._reached_by), "_used_by": dict(self._used_by)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        reached_by, used_by = weakly_keyed(state["_reached_by"]), weakly_keyed(state["_used_by"])
        vars(self).update(state, _reached_by=reached_by, _used_by=used_by)


def _is_layer(leaf: Tensor) -> bool:
    """A parameter with two or more dimensions above one: [C, 1, 1] is a vector in disguise."""
    return isinstance(leaf, nn.Parameter) and sum(size > 1 for size in leaf.shape) > 1


def _is_reached_by_all(graph: AutogradGraph, leaf: Tensor) -> bool:
    return graph.reach(leaf) == graph.everyone


def heads_among(gradients: Tensor, shared: Sequence[SharedParameter]) -> list[Tensor]:
    """Which parts of `W` are heads, by the tasks' gradients there; reads values, and so synchronizes with the device.

    A part where no task has a gradient is none: it is asleep, as behind a head that starts at zero.

    Args:
        gradients: [T, N], or whether they are not zero, of two tasks or more, flat, in the order of `shared`.
        shared: The parts of `W`.
    """
    used = gradients != 0
    common = used.sum(0) > 1
    sizes = [entry_count(part.parameter) for part in shared]
    columns = zip(shared, used.split(sizes, 1), common.split(sizes), strict=True)
    awake = [(part.parameter, both) for part, of_tasks, both in columns if bool(of_tasks.any())]
    if not bool((used & common).any(1).all()):  # for some task no entry is anybody else's
        return [parameter for parameter, _ in awake]
    return [parameter for parameter, both in awake if not bool(both.any())]


def without_gradient(leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """The leaves whose gradient is zero or missing; reads values, and so synchronizes with the device."""
    return [
        leaf for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is None or not bool(gradient.any())
    ]
