"""What was measured since the last step: entries that add up, over micro-batches, backwards and processes alike.

A `Measurement` makes the balanced loss, whose backward adds to its sums; how it comes by them is up to each way of
measuring (`_hooks.py`, `_branches.py`). Which backwards belong to one step, and when what they measured is void, is
known in one place, the `Window`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .._errors import GraphError
from .._torch_private import current_backward, in_compiled_autograd, never_compiled
from ._shared import SharedLayer

At = Literal["weights", "features", "branches"]

Present = Sequence[Tensor | None]
"""One loss per task, `None` for those that a batch lacks."""


class Sums(NamedTuple):
    """Entries that add up; zero for tasks that were absent. `c` is whatever multiplied the balanced loss."""

    entries: Tensor
    """[T, N], `Σ c w_i ∇_W L_i` at a layer; [T, 1], `Σ ‖c w_i ∇_features L_i‖²` at features."""
    losses: Tensor
    """[T], `Σ c L_i`."""
    factors: Tensor
    """[T], `Σ c`."""
    counts: Tensor
    """[T], how many losses."""

    def plus(self, other: Sums) -> Sums:
        """The sum of both, in the memory of the first; entries that one of them lacks are zero in it."""
        mine, theirs = self.entries, other.entries
        if mine.shape[1] < theirs.shape[1]:
            mine, theirs = theirs, mine
        mine[:, : theirs.shape[1]] += theirs
        return Sums(mine, *(a + b for a, b in zip(self[1:], other[1:], strict=True)))


@dataclass
class Opening:
    """What the first backward is to find out before anything runs in it; one for all forwards of a step.

    Attributes:
        reduce: The sums over all processes that share the batch.
        check: Raises if a detected layer is another one on another process.
        awaits: Whether weights to start from are still wanted for one of these tasks, in a step that has begun or not.
        open: The weights to train with, by what was found and by what the step had measured before; `None` if nothing
            can be said yet.
        weights: What `open` said: whatever runs backward afterwards is weighted by it as well.
    """

    reduce: Callable[[Sums], Sums]
    check: Callable[[SharedLayer], None]
    awaits: Callable[[Sequence[int], bool], bool]
    open: Callable[[Sums, Sums | None], Tensor | None]
    weights: Tensor | None = None

    def look(self, tasks: Sequence[int], before: Sums | None, measure: Callable[[], Sums | None]) -> None:
        """Find weights to start from, if there is a task for which they are wanted.

        Args:
            tasks: Those whose losses run backward.
            before: What the step has measured before; an overflow among it is a step that will not be made.
            measure: Gives the sums at weights of one, or `None` where they cannot be had.
        """
        if not self.awaits(tasks, before is not None) or (
            before is not None and not bool(torch.isfinite(before.entries).all())
        ):
            return
        if (sums := measure()) is not None and (weights := self.open(sums, before)) is not None:
            self.weights = weights


FindOpening = Callable[[], Opening | None]


class Window:
    """Which backwards belong to the step under way: those since gradients were last cleared.

    What was measured before that belongs to no step: a loss scaler skipped it, or the backward failed.

    Args:
        is_parallel: Whether processes share the batch. FSDP2 then may keep gradients elsewhere, so that clearing is
            trusted only once a gradient was seen.
    """

    def __init__(self, is_parallel: bool) -> None:
        self._attached: list[Tensor] | None = None
        self._sees_clearing = not is_parallel
        self._backward = -1

    def attach(self, parameters: Sequence[Tensor]) -> None:
        """Gradients are those of an optimizer's parameters."""
        self._attached = list(parameters)

    def stepped(self, shared: Sequence[Tensor]) -> None:
        """The user is about to step by hand, with gradients as they should be."""
        self._attached = None
        self._sees_clearing = any(tensor.grad is not None for tensor in shared)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is attached to nothing, and holds no copy of an optimizer's parameters."""
        return {**self.__dict__, "_attached": None}

    def opens(self, shared: Sequence[Tensor]) -> bool:
        """A balanced loss runs backward: whether what was measured before is void.

        Several balanced losses may run backward as one: gradients do not show before its end.
        """
        backward = current_backward()
        if backward == self._backward:
            return False
        self._backward = backward
        return self._cleared(list(shared))

    def _cleared(self, shared: list[Tensor]) -> bool:
        if self._attached is not None:
            # A gathered parameter of FSDP2 never shows its gradient, but the optimizer's parameters do.
            known = {id(parameter) for parameter in self._attached}
            if shared and all(id(parameter) in known for parameter in shared):
                self._attached = shared
            shared = self._attached
        elif not self._sees_clearing:
            return False
        return bool(shared) and all(parameter.grad is None for parameter in shared)


class Measurement(ABC):
    """Measures the tasks' gradients in the backward of the balanced loss.

    Args:
        names: Of the tasks.
        layer: `W`.
        window: Which backwards belong to a step.

    Attributes:
        sums: What the backwards since the last `clear` measured; `None` if there was none.
        has_cosines: Whether entries are gradients, between which there are angles.
    """

    has_cosines = False

    def __init__(self, names: Sequence[str], layer: SharedLayer, window: Window) -> None:
        self.names = tuple(names)
        self.layer = layer
        self.window = window

    @property
    @abstractmethod
    def sums(self) -> Sums | None: ...

    @abstractmethod
    def clear(self) -> None:
        """Forget what was measured, as after an optimizer step."""

    @abstractmethod
    def balanced(self, losses: Present, values: Tensor, weights: Tensor, mask: Tensor, opening: FindOpening) -> Tensor:
        """`Σ w_i L_i`, whose backward measures the tasks.

        Args:
            losses: As they were parsed.
            values: [T], the same stacked, 0 for absent tasks.
            weights: [T], those of this forward.
            mask: [T], 1 for the tasks present and 0 for the others.
            opening: Tells what is still to find out, if anything.

        Raises:
            GraphError: The tasks cannot be measured in this graph.
        """

    @abstractmethod
    def norms(self, sums: Sums) -> Tensor:
        """[T], of the entries."""

    @abstractmethod
    def add(self, sums: Sums) -> None:
        """Add what one backward measured."""

    @abstractmethod
    def nothing(self, like: Tensor) -> Sums:
        """What a process measures whose batch lacks all tasks: it takes part in the reduction all the same.

        Args:
            like: [T], for type and device.

        Raises:
            StateError: `W` is not known here yet.
        """

    def check_balanced(self) -> None:  # noqa: B027
        """Raise what is wrong with the losses that were balanced since the last step, if anything."""

    def begin(self) -> None:
        """A balanced loss runs backward: what was measured for a step that never came is forgotten."""
        if in_compiled_autograd():
            raise GraphError(_COMPILED_AUTOGRAD)
        if self.window.opens(self.layer.tensors):
            self.clear()


class BalancedLoss(torch.autograd.Function):
    """`Σ w_i L_i`; its backward is the first thing that runs in the user's, and calls `begin(c, weights)`.

    That returns the weights to go on with: in the first backward they may be better than those of the forward.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, begin: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`values` and `weights` are [T]."""
        ctx.begin = begin
        ctx.save_for_backward(weights)
        ctx.dtype = values.dtype
        return (weights * values).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """`c w_i`."""
        (factor,) = gradients
        with torch.no_grad():
            weights = never_compiled(ctx.begin)(factor.detach(), *ctx.saved_tensors)
        return (factor * weights).to(ctx.dtype), None, None


_COMPILED_AUTOGRAD = (
    "compiled autograd runs this backward as one compiled graph, in which gradients of single tasks cannot be taken; "
    'leave torch._dynamo.config.compiled_autograd off, or measure with at="branches"'
)
