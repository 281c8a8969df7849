"""The measurements since the last step: sums over micro-batches, backwards and processes.

A `Measurement` creates the balanced loss, whose backward adds to its sums; subclasses define how (`_hooks.py`,
`_branches.py`). Which backwards belong to one step, and when their measurements are void, is decided in one place, the
`Window`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .._errors import GraphError
from .._torch_private import at_end_of_backward, changes, current_backward, in_compiled_autograd, never_compiled
from ._looks import looking
from ._shared import SharedLayer

At = Literal["layer", "features", "branches"]

Present = Sequence[Tensor | None]
"""One loss per task, `None` for absent tasks."""


class Sums(NamedTuple):
    """Sums; zero for absent tasks. `c` is whatever multiplied the balanced loss."""

    entries: Tensor
    """[T, N], `Σ c w_i ∇_W L_i` at a layer, or [T, 1], its norm, where nothing is to be added; [T, 1],
    `Σ ‖c w_i ∇_features L_i‖²` at features."""
    losses: Tensor
    """[T], `Σ c L_i`."""
    factors: Tensor
    """[T], `Σ c`."""
    counts: Tensor
    """[T], the number of losses."""
    scales: Tensor
    """[T], `Σ c w_i`, by the weights of each forward, which others may have replaced since."""
    products: Tensor | None = None
    """[T, T], the inner products of the rows, where only their norms are kept."""
    is_complete: bool = False
    """Whether no task was absent, as far as the host knows."""
    are_whole: bool = True
    """Whether the entries of a task are its gradient, and not its norm."""

    @property
    def per_task(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[T] each: losses, factors, counts and scales, which are added like the entries."""
        return self.losses, self.factors, self.counts, self.scales

    def plus(self, other: Sums) -> Sums:
        """The sum of both, in place in the first; missing entries count as zero."""
        mine, theirs = self.entries, other.entries
        if mine.shape[1] < theirs.shape[1]:
            mine, theirs = theirs, mine
        mine[:, : theirs.shape[1]] += theirs
        added = [a + b for a, b in zip(self.per_task, other.per_task, strict=True)]
        return Sums(mine, *added, is_complete=self.is_complete and other.is_complete)


class Wanted(NamedTuple):
    """The quantities that a step needs of the tasks' gradients beside their norms.

    Attributes:
        rows: The gradients themselves, as those of other processes are to be added.
        products: Their inner products.
    """

    rows: bool
    products: bool


@dataclass
class Opening:
    """What the first backward must determine before anything runs in it; one for all forwards of a step.

    Attributes:
        reduce: The sums over all processes that share the batch.
        check: Raises if processes have detected different layers.
        awaits: Whether one of these tasks still needs a starting weight, in a step that has begun or not.
        open: Returns the weights to train with, from the first look's sums and the step's earlier ones; `None` if they
            are inconclusive.
        abandon: Starts from the current weights, as no first look is possible.
        weights: The result of `open`, which also weights whatever runs backward afterwards.
        undecided: Parts of `W` that were found to need more steps.
    """

    reduce: Callable[[Sums], Sums]
    check: Callable[[SharedLayer], None]
    awaits: Callable[[Sequence[int], bool], bool]
    open: Callable[[Sums, Sums | None], Tensor | None]
    abandon: Callable[[], None]
    weights: Tensor | None = None
    undecided: set[Tensor] = field(default_factory=set)

    def look(self, tasks: Sequence[int], before: Sums | None, measure: Callable[[], Sums | None]) -> None:
        """Determine starting weights, if a task needs them.

        Args:
            tasks: Those whose losses run backward.
            before: The step's earlier sums; with an overflow among them the step will be skipped.
            measure: Returns the sums at weights of one, or `None` where they are not available.
        """
        if not self.awaits(tasks, before is not None) or (
            before is not None and not bool(torch.isfinite(before.entries).all())
        ):
            return
        if (sums := measure()) is not None and (weights := self.open(sums, before)) is not None:
            self.weights = weights


FindOpening = Callable[[], Opening | None]


class Window:
    """Which backwards belong to the step in progress: those since gradients were last cleared.

    Earlier measurements belong to no step: a loss scaler skipped it, or the backward failed. Clearing is visible only
    where gradients stay in `.grad` until then; where something removes them in the backward itself (FSDP2,
    ZeRO, Megatron's `main_grad`, `torch.autograd.grad`), all backwards since the last step count.

    Attributes:
        has_moved: Whether parameters have changed since the backward before, as between the evaluations of one step of
            L-BFGS or SAM, of which the last one counts.
    """

    def __init__(self) -> None:
        self.has_moved = False
        self._attached: list[Tensor] | None = None
        self._stay = False
        self._backward = -1
        self._has_ended = True
        self._version = 0

    def attach(self, parameters: Sequence[Tensor]) -> None:
        """Gradients are those of an optimizer's parameters."""
        self._attached = list(parameters)

    def detach(self) -> None:
        """Gradients are those at `W` again."""
        self._attached = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy is attached to nothing, and holds no copy of an optimizer's parameters."""
        return {**self.__dict__, "_attached": None}

    def opens(self, shared: Sequence[Tensor]) -> bool:
        """Called when a balanced loss runs backward; returns whether earlier measurements are void.

        Several balanced losses may run backward as one: gradients do not show before its end.
        """
        backward = current_backward()
        if backward == self._backward:
            return False
        watched = self._watched(list(shared))
        # Whether they stay shows at the end of a backward only, which one that raised has not seen.
        is_known = self._stay or self.has_failed
        is_cleared = is_known and bool(watched) and all(parameter.grad is None for parameter in watched)
        self._backward, self._has_ended = backward, False
        version = sum(map(changes, shared))
        self.has_moved, self._version = version != self._version, version
        at_end_of_backward(partial(self._ended, backward, watched))
        return is_cleared

    @property
    def has_failed(self) -> bool:
        """Whether the last backward raised."""
        return not self._has_ended

    def _ended(self, backward: int, watched: Sequence[Tensor]) -> None:
        if backward == self._backward:
            self._has_ended = True
            self._stay = self._stay or any(parameter.grad is not None for parameter in watched)

    def _watched(self, shared: list[Tensor]) -> list[Tensor]:
        if self._attached is None:
            return shared
        # A gathered parameter of FSDP2 never shows its gradient, but the optimizer's parameters do.
        known = {id(parameter) for parameter in self._attached}
        return shared if shared and all(id(parameter) in known for parameter in shared) else self._attached


class Measurement(ABC):
    """Measures the tasks' gradients in the backward of the balanced loss.

    Args:
        names: Of the tasks.
        layer: `W`.
        window: Which backwards belong to a step.

    Attributes:
        sums: The sums over the backwards since the last `clear`; `None` if there was none.
        has_cosines: Whether entries are gradients, between which there are angles.
        is_partial: Whether it lacks backwards since the last step, so that it does not cover the step.
        dropped: Whether it lacks them because gradients were cleared after a valid one, without a step.
    """

    has_cosines = False

    def __init__(self, names: Sequence[str], layer: SharedLayer, window: Window) -> None:
        self.names = tuple(names)
        self.layer = layer
        self.window = window
        self.is_partial = False
        self.dropped = False

    @property
    @abstractmethod
    def sums(self) -> Sums | None: ...

    def clear(self) -> None:
        """Discard the measurements, as after an optimizer step."""
        self.is_partial = self.dropped = False

    def moved(self, like: Tensor) -> None:
        """Adopt device and dtype of `like`, as the weights have now, and discard the measurements."""
        self.clear()

    @abstractmethod
    def balanced(
        self, losses: Present, values: Tensor, weights: Tensor, mask: Tensor, opening: FindOpening, wanted: Wanted
    ) -> Tensor:
        """`Σ w_i L_i`, whose backward measures the tasks.

        Args:
            losses: As they were parsed.
            values: [T], the same stacked, 0 for absent tasks.
            weights: [T], those of this forward.
            mask: [T], 1 for the tasks present and 0 for the others.
            opening: What the first backward must determine, if anything.
            wanted: The quantities that the step needs beside norms.

        Raises:
            GraphError: The tasks cannot be measured in this graph.
        """

    def without_tasks(self, values: Tensor, weights: Tensor, opening: FindOpening) -> Tensor:
        """As `balanced`, of a batch that lacks all tasks: its backward takes part in what other processes reduce.

        Raises:
            StateError: `W` is not known here yet.
        """
        nothing = self.nothing(weights)
        begin = partial(self._begin_without_tasks, nothing, opening())
        return BalancedLoss.apply(values.requires_grad_(), weights, begin)  # pyright: ignore[reportReturnType]

    def _begin_without_tasks(self, nothing: Sums, opening: Opening | None, _: Tensor, weights: Tensor) -> Tensor:
        if self.begin(is_again=False):
            if opening is not None:
                opening.look([], self.sums, lambda: opening.reduce(nothing))
            self.add(nothing)
        return weights

    @abstractmethod
    def norms(self, sums: Sums) -> Tensor:
        """[T], of the entries."""

    @abstractmethod
    def add(self, sums: Sums) -> None:
        """Add the sums of one backward."""

    @abstractmethod
    def nothing(self, like: Tensor) -> Sums:
        """Zero sums, with which a process takes part in the reduction if its batch lacks all tasks.

        Args:
            like: [T], for type and device.

        Raises:
            StateError: `W` is not known here yet.
        """

    def check_balanced(self) -> None:  # noqa: B027
        """Raise if the losses that were balanced since the last step cannot be measured."""

    def begin(self, is_again: bool) -> bool:
        """Called when a balanced loss runs backward; discards measurements of a step that never came.

        Args:
            is_again: The same loss has run backward before, so that nothing is lost.

        Returns:
            Whether this backward is one to measure, and not another balancer's first look.
        """
        if getattr(looking, "now", False):
            return False
        if in_compiled_autograd():
            raise GraphError(_COMPILED_AUTOGRAD)
        has_failed = self.window.has_failed
        if self.window.opens(self.layer.tensors):
            dropped = self.dropped or not (is_again or has_failed or self.window.has_moved or not self._is_sound())
            self.clear()
            self.is_partial = self.dropped = dropped
        return True

    def _is_sound(self) -> bool:
        """Whether there is a finite measurement, which no loss scaler has skipped for an overflow."""
        sums = self.sums
        return sums is not None and bool(torch.isfinite(sums.entries).all() & (sums.factors <= sums.counts).all())


class BalancedLoss(torch.autograd.Function):
    """`Σ w_i L_i`; its backward runs first in the user's, and calls `begin(c, weights)`.

    That returns the weights to use: in the first backward they may differ from those of the forward.
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
        return factor * weights.to(ctx.dtype), None, None


_COMPILED_AUTOGRAD = (
    "compiled autograd runs this backward as one compiled graph, in which gradients of single tasks cannot be taken; "
    'leave torch._dynamo.config.compiled_autograd off, or measure with at="branches"'
)
