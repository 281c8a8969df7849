"""Detects silent failure: a run in which no weight is updated, or no longer, warns once, with the likely cause.

Nothing fails where `step()` was forgotten, or where every batch has one task only: the network trains, with its initial
loss weights. So balanced losses are counted, and at the hundredth it is checked whether a weight has been updated. Only
then is the device read, and the check is postponed where an update may still come: while gradients are accumulated,
while `L(0)` is averaged, while few steps were measured. Whether the network itself is trained shows in the version
counter of `W`. From then on the losses since the last step are counted: a validation may have left the balancer in
`eval()`, or a new optimizer may step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._errors import NOT_POSITIVE, warn
from ._loss_weights import LossWeights
from ._torch_private import changes
from .capture import Measurement, Sums

PATIENCE = 100
"""Balanced losses after which a missing update is reported."""
MOST_MICRO_BATCHES = 1600
"""Maximum number of losses assumed to be accumulated into one step."""
FEWEST_UPDATES = 20
"""Fewer updates without effect may be a loss scaler's first steps."""


class Situation(NamedTuple):
    """The facts about a balancer from which the cause is determined.

    Attributes:
        is_training: Whether it is not in `eval()`.
        is_frozen: Whether it is frozen, by `freeze()` or by a loaded state.
        attached: Class name of the optimizer that it is attached to, if any.
        awaited: Tasks without which the layer cannot be detected.
        is_due: Whether this step is measured, by `every`.
        measurement: `W` as far as it is known, and the measurements since the last step.
        last: [T, 5], the result of `LossWeights.update` in the last measured step.
        loss_weights: The weights and their state.
    """

    is_training: bool
    is_frozen: bool
    attached: str | None
    awaited: Sequence[str]
    is_due: bool
    measurement: Measurement
    last: Tensor | None
    loss_weights: LossWeights


class Silence:
    """Counts balanced losses until a weight is updated, then those between updates; one per balancer.

    Args:
        is_meant: Whether weights are constant on purpose: `freeze()` was called.
    """

    def __init__(self, is_meant: bool = False) -> None:
        self.is_meant = is_meant
        self._count = 0
        self._limit = PATIENCE
        self._is_over = False
        self._is_pending = False
        self._was_refused = False
        self._has_stepped = False
        self._overflows = 0
        self._watched: list[tuple[Tensor, int]] = []
        self._updates = 0
        self._start: tuple[Tensor, Tensor] | None = None
        self._found_inf: Tensor | None = None
        self._is_later = False
        self._has_stopped = False
        self._has_told_stop = False

    # Nothing here runs while a compiler traces: it would recompile for each count.

    def balanced(self, is_training: bool, situation: Callable[[], Situation]) -> None:
        """Count a balanced loss that can run backward."""
        if self._is_over or torch.compiler.is_compiling():
            return
        if not is_training:  # this is for validation, unless a step follows
            self._is_pending = True
            return
        if not self._watched and (not self._is_later or self._count >= PATIENCE // 2):
            self._watched = [(tensor, changes(tensor)) for tensor in situation().measurement.layer.tensors]
        self._count += 1
        self._ask(situation)

    def refused(self, situation: Callable[[], Situation]) -> None:
        """Count a step without an update, as in `eval()`."""
        if self._is_over or torch.compiler.is_compiling():
            return
        self._count += self._is_pending
        self._was_refused |= self._count > 0
        if self._is_pending:
            self._is_pending = False
            self._ask(situation)

    def stepped(self) -> None:
        """Count a step, measured or not."""
        if self._is_later:
            self._wait()
        elif not self._is_over:
            self._has_stepped = True

    def updates(self, loss_weights: LossWeights, found_inf: Tensor | None) -> None:
        """Count an update; whether the weights change is known on the device only."""
        if self._is_over or self._is_later or torch.compiler.is_compiling():
            return
        if self._start is None:
            self._start = loss_weights.weights.clone(), loss_weights.skipped.clone()
        self._updates += 1
        self._found_inf = found_inf

    def _ask(self, situation: Callable[[], Situation]) -> None:
        if self._count < self._limit or self._has_stopped:
            return
        known = situation()
        if known.is_frozen and self.is_meant:
            self._count = 0
        elif not self._is_later and self._has_updated(known):
            self._is_later, self._has_stepped, self._start = True, False, None
            self._wait()
        elif self._is_early(known):
            self._limit += 1 if self._overflows == 1 else self._limit
        else:
            self._is_over, self._has_stopped, self._watched = not self._is_later, self._is_later, []
            if not self._has_told_stop and (cause := self.cause(known)) is not None:
                self._has_told_stop = self._is_later
                messages = (_STOPPED, _STOPPED_MEASURING) if self._is_later else (_MESSAGE, _UNMEASURED)
                warn(messages[known.loss_weights.rule.is_constant].format(count=self._count, cause=cause))

    def _wait(self) -> None:
        """Begin to count anew, as after each step."""
        self._count, self._limit, self._overflows, self._watched = 0, PATIENCE, 0, []
        self._is_pending = self._was_refused = self._has_stopped = False

    def _has_updated(self, known: Situation) -> bool:
        if known.loss_weights.rule.is_constant:
            return known.last is not None  # to be measured is all there is to do
        if self._start is None:  # what was measured without being seen here, a compiled step() has measured
            return self._has_stepped and known.last is not None
        return not torch.allclose(known.loss_weights.weights.cpu(), self._start[0].cpu(), rtol=1e-6, atol=0.0)

    def _is_early(self, known: Situation) -> bool:
        """Whether the first update may still come."""
        if self._start is not None:
            is_lost = self._is_skipped_on_device() or self._skips_all(known)
            return self._updates < FEWEST_UPDATES or (not is_lost and _awaits_losses(known))
        if self._has_stepped and not known.is_due:
            return True
        sums = known.measurement.sums
        if sums is not None and not _is_finite(sums):
            # Accumulated, they may be those of one step. Two losses in a row, each alone in its step, are not.
            self._overflows = self._overflows + 1 if bool(sums.counts.max() <= 1) else 0
            return self._overflows < 2 and self._count < MOST_MICRO_BATCHES
        if self._was_refused or any(changes(tensor) != count for tensor, count in self._watched):
            return False
        # Optimizers that write into `.data` are not counted, and W may not be known.
        return self._count < MOST_MICRO_BATCHES or (bool(self._watched) and sums is None)

    # -------------------------------------------------------------------------------------------------------- causes

    def cause(self, known: Situation) -> str | None:
        """Why no weight was updated so far, or no longer, and what to do; `None` if one was, or if nothing is wrong."""
        if not self._is_later and self._has_updated(known):
            return None
        if self._start is not None:
            return next(self._causes_of_no_effect(known), None)
        return next(self._causes_of_no_update(known))

    def remark(self, known: Situation) -> str | None:
        """What a report says of a run with steps, in which no weight is updated; `None` if one is."""
        if self._has_stopped and not (known.is_frozen and self.is_meant):
            return f"No weight has been updated for {self._count:,} balanced losses: {self.cause(known)}."
        cause = None if self._start is None else self.cause(known)
        return None if cause is None else f"No weight has been updated: {cause}."

    def remark_on_no_step(self, known: Situation) -> str | None:
        """What a report says where losses were balanced and no step was made; `None` if there were none."""
        if self._count < 2 or (known.is_frozen and self.is_meant) or (cause := self.cause(known)) is None:
            return None
        return f"losses were balanced, and no weight was updated: {cause}"

    def _causes_of_no_update(self, known: Situation) -> Iterator[str]:
        sums = known.measurement.sums
        if known.is_frozen:
            yield _FROZEN
        if not known.is_training:
            yield _EVAL
        if known.awaited:
            yield _AWAITED.format(", ".join(known.awaited))
        if (name := _closure_of()) is not None:
            yield _CLOSURE.format(name)
        if sums is not None and not _is_finite(sums):
            yield _OVERFLOW
        if sums is None and known.is_due:
            yield _NO_BACKWARD
        if known.attached is not None:
            yield _NO_OPTIMIZER_STEP.format(known.attached)
        yield (_NO_LONGER if self._is_later else _NEVER) + _NO_STEP

    def _causes_of_no_effect(self, known: Situation) -> Iterator[str]:
        assert known.last is not None
        weights = known.loss_weights
        _, before, norms, *_ = known.last.unbind(1)
        present = ~before.isnan()
        if self._skips_all(known):
            why = _SKIPPED.format(_times(self._updates), ", ".join(weights.unusable(known.last)) or "some task")
            yield why + (NOT_POSITIVE if weights.alpha else "")
        if self._is_skipped_on_device():
            yield _OVERFLOW
        if int(present.sum()) < 2:
            names = ", ".join(task for task, here in zip(weights.tasks, present.tolist(), strict=True) if here)
            yield _ONE_TASK if weights.rule.optimizer is not None else _NO_OTHER_TASK.format(names)
        if not bool(norms[present].any()):
            yield _NO_GRADIENT
        if (lr := _lr(weights)) < 1e-7:
            yield _NO_RATE.format(lr)

    def _is_skipped_on_device(self) -> bool:
        return self._found_inf is not None and bool(self._found_inf)

    def _skips_all(self, known: Situation) -> bool:
        return self._start is not None and int(known.loss_weights.skipped - self._start[1]) == self._updates


def _is_finite(sums: Sums) -> bool:
    return bool(torch.isfinite(sums.entries).all())


def _awaits_losses(known: Situation) -> bool:
    """Whether `L(0)` of a task that is present is still averaged, which keeps the weights until then."""
    assert known.last is not None
    present = ~known.last[:, 1].isnan()
    return known.loss_weights.alpha > 0 and bool(known.loss_weights.initial_losses[present].isnan().any())


def _lr(loss_weights: LossWeights) -> float:
    optimizer = loss_weights.rule.optimizer
    return math.inf if optimizer is None else float(optimizer.param_groups[0]["lr"])


def _closure_of() -> str | None:
    """The L-BFGS optimizer in whose step this runs: it calls the loss as often as its `max_iter` allows."""
    frame = sys._getframe(1)
    while frame is not None:
        name = type(frame.f_locals.get("self")).__name__ if frame.f_code.co_name == "step" else ""
        if "lbfgs" in name.lower():
            return name
        frame = frame.f_back
    return None


def _times(count: int) -> str:
    return "the only update" if count == 1 else f"each of {count:,} updates"


_MESSAGE = (
    "GradNorm has balanced {count:,} losses and updated no weight: {cause}. Training continues with the weights as "
    "they are; if that is meant, balancer.freeze() says so."
)
_UNMEASURED = "The monitor was given {count:,} losses and has measured nothing: {cause}."
_STOPPED = (
    "GradNorm has balanced {count:,} losses since the weights were last updated: {cause}. Training continues with the "
    "weights as they are; if that is meant, balancer.freeze() says so."
)
_STOPPED_MEASURING = "The monitor was given {count:,} losses since it last measured: {cause}."
_NEVER, _NO_LONGER = "step() was never called", "step() is no longer called"
_NO_STEP = (
    ", and the balancer is attached to no optimizer (a copy of an attached balancer is not). "
    "Call balancer.step() after each optimizer.step(), or balancer.attach(optimizer) once"
)
_NO_OPTIMIZER_STEP = (
    "it was attached to {0}, whose step() has not completed since. Attach it to the optimizer that steps (for SAM its "
    "base_optimizer)"
)
_NO_BACKWARD = (
    "no backward has come through what balancer(losses) returned. Call backward() on that loss, not on another sum"
)
_EVAL = (
    "the balancer is in eval(), as every part of a model in eval() is. Call balancer.train(); to freeze batch "
    "normalization, put those layers alone in eval()"
)
_FROZEN = "it is frozen, by a state_dict that was saved so. Call balancer.unfreeze() after loading it"
_AWAITED = (
    "the shared layer is detected once every task has been seen, and {0} has not. Give the layer with shared=, or "
    "leave out tasks that never come"
)
_CLOSURE = (
    "one step of {0} computes all of these losses, and weights are updated between steps. Train with Adam and the "
    "balancer first; then balancer.weights = balancer.time_averaged_weights(), balancer.freeze(), and L-BFGS"
)
_OVERFLOW = (
    "the gradients at W are not finite, so that the loss scaler skips every step. Find the loss or the gradient that "
    "overflows"
)
_SKIPPED = "{0} was skipped, since the loss of {1} or its gradient norm was not finite"
_ONE_TASK = (
    "each step measured one task, and Algorithm 1 compares the tasks of one step. Accumulate the gradients of a batch "
    'of each task before optimizer.step(), or use update="closed-form", which keeps averages of the others'
)
_NO_OTHER_TASK = "no task but {0} was ever present. Check the names under which the other losses are given"
_NO_GRADIENT = (
    "every gradient at W is exactly zero. Check how the losses depend on W, or give another layer with shared="
)
_NO_RATE = "the learning rate of the weights is {0:g}, which is too small to change one. Raise it: Descent(lr=0.025)"
