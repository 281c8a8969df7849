"""Detects silent failure: a run in which no weight is updated, or no longer, warns once per cause.

Nothing fails where `step()` was forgotten, or where every batch has one task only: the network trains, with its loss
weights as they are. So two things are watched. One is the gap, the balanced losses since the last step: at the
hundredth it is asked whether a step may still come, as while gradients are accumulated; whether the network itself is
trained shows in the version counter of `W`. The other is the effect of the steps that do come: whether they have
changed a weight, which is asked at the losses 100, 200, 400 and so on, later at each thousandth, and waits for the
average of `L(0)` and for a few updates. Only there is the device read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ._errors import NOT_POSITIVE, warn
from ._loss_weights import LossWeights
from ._torch_private import changes, is_exporting
from .capture import Measurement, SharedLayer, Sums, sample

PATIENCE = 100
"""Balanced losses after which a missing update is reported."""
MOST_MICRO_BATCHES = 1600
"""Maximum number of losses assumed to be accumulated into one step, where `W` does not tell."""
RARELY = 1000
"""Maximum number of losses from one question for an effect to the next."""
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
    """Watches the losses, steps and updates of one balancer.

    Args:
        is_meant: Whether weights are constant on purpose: `freeze()` was called.
    """

    def __init__(self, is_meant: bool = False) -> None:
        self.is_meant = is_meant
        self._gap = _Gap()
        self._effect = _Effect()
        self._has_stepped = False
        self._told: set[str] = set()

    def balanced(
        self, is_training: bool, is_measured: bool, tasks: Iterable[int], situation: Callable[[], Situation]
    ) -> None:
        """Count a balanced loss of these tasks that can run backward."""
        if torch.compiler.is_compiling():  # what is read here is compiled anew for each value, so only a flag is set
            if not is_measured and not is_exporting():
                self._gap.is_pending = True
            return
        if not is_training:  # this is for validation, unless a step follows
            self._gap.is_pending = True
            return
        if self._gap.was_in_eval:
            self._gap.clear()
        self._gap.count += 1
        self._gap.tasks.update(tasks)
        self._effect.losses += 1
        if self._gap.count >= PATIENCE // 2 and not self._gap.watched:
            self._gap.watch(situation().measurement.layer)
        self._ask(situation)

    def refused(self, situation: Callable[[], Situation]) -> None:
        """Count a step without an update, as in `eval()`."""
        self._gap.count += self._gap.is_pending
        self._gap.was_refused |= self._gap.count > 0
        if self._gap.is_pending:
            self._gap.is_pending, self._gap.was_in_eval = False, True
            self._ask(situation)

    def stepped(self, is_due: bool) -> None:
        """Count a step, measured or not."""
        self._has_stepped = True
        if is_due:
            self._effect.measured(self._gap.tasks)
        self._gap.clear()

    def updates(self, loss_weights: LossWeights, found_inf: Tensor | None) -> None:
        """Count an update; whether the weights change is known on the device only."""
        self._effect.updates_of(loss_weights, found_inf)

    def restart(self) -> None:
        """Begin anew, as after `freeze()`, `unfreeze()` and where a state is loaded."""
        self._gap.clear()
        self._effect.begin_anew()

    def _ask(self, situation: Callable[[], Situation]) -> None:
        if self._gap.is_asked():
            known = situation()
            if self._is_constant(known):
                self._gap.clear()
            elif not self._gap.is_early(known):
                self._gap.cause = next(_causes_of_no_step(known))
                self._tell(_STOPPED if self._has_stepped else _MESSAGE, known, self._gap.count, self._gap.cause)
        elif self._effect.is_asked():
            known = situation()
            if (cause := self._effect.ask(known)) is not None:
                self._tell(_NO_EFFECT if self._effect.has_changed else _MESSAGE, known, self._effect.count, cause)

    def _is_constant(self, known: Situation) -> bool:
        """Whether the weights are kept on purpose."""
        return known.is_frozen and self.is_meant

    def _tell(self, message: _Message, known: Situation, count: int, cause: _Cause) -> None:
        if cause.kind not in self._told:
            self._told.add(cause.kind)
            warn(message[known.loss_weights.rule.is_constant].format(count=count, cause=cause))

    # ------------------------------------------------------------------------------------------------------ in reports

    def remark(self, known: Situation) -> str | None:
        """What a report says of a run with steps, in which no weight is updated; `None` if one is."""
        if self._is_constant(known):
            return None
        if self._gap.cause is not None:
            return f"No weight has been updated for {self._gap.count:,} balanced losses: {self._gap.cause}."
        cause = self._effect.cause(known)
        since = f" for {self._effect.count:,} balanced losses" if self._effect.has_changed else ""
        return None if cause is None else f"No weight has been updated{since}: {cause}."

    def remark_on_no_step(self, known: Situation) -> str | None:
        """Why a report has no step to tell of; `None` where none was to be expected."""
        if self._is_constant(known):
            return None
        if self._has_stepped and not known.is_due:
            return "the next step that is measured, by every=, is still to come"
        if self._has_stepped or self._gap.count < 2:
            return None
        return f"losses were balanced, and no weight was updated: {next(_causes_of_no_step(known))}"


class _Gap:
    """The balanced losses since the last step."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.count = 0
        self.tasks: set[int] = set()
        self.limit = PATIENCE
        self.cause: _Cause | None = None
        self.watched: list[tuple[Tensor, int, Tensor]] = []
        self.is_pending = self.was_refused = self.was_in_eval = False
        self._overflow: Tensor | None = None

    def watch(self, layer: SharedLayer) -> None:
        """Note how `W` is now, as far as it is known."""
        self.watched = [(tensor, changes(tensor), sample(tensor)) for tensor in layer.tensors]

    def is_asked(self) -> bool:
        return self.count >= self.limit

    def is_early(self, known: Situation) -> bool:
        """Whether the step may still come; postpones the question then."""
        is_early = self._may_come(known)
        self.limit += self.limit if self._overflow is None else 1
        return is_early

    def _may_come(self, known: Situation) -> bool:
        sums = known.measurement.sums
        if sums is not None and not _is_finite(sums):
            # Accumulated, they may be those of one step. Two losses in a row, each alone in its step, are not.
            before, self._overflow = self._overflow, sums.losses.clone() if bool(sums.counts.max() <= 1) else None
            if before is not None and self._overflow is not None and not torch.equal(before, self._overflow):
                return False
            return self.count < MOST_MICRO_BATCHES
        if self.was_refused or any(changes(tensor) != version for tensor, version, _ in self.watched):
            return False
        if self.count < MOST_MICRO_BATCHES:
            return True
        # Optimizers that write into `.data` are not counted.
        return bool(self.watched) and all(torch.equal(sample(tensor), before) for tensor, _, before in self.watched)


class _Effect:
    """The updates since the weights were last known to change."""

    def __init__(self) -> None:
        self.losses = 0
        self.has_changed = False
        self._met: set[int] = set()
        self.begin_anew()

    def begin_anew(self) -> None:
        self._limit = self.losses + PATIENCE
        self._restart()

    def _restart(self) -> None:
        self._since = self.losses
        self._steps = self._updates = self._most_tasks = 0
        self._start: tuple[Tensor, Tensor] | None = None
        self._found_inf: Tensor | None = None

    @property
    def count(self) -> int:
        """The losses in which no weight has changed."""
        return self.losses - self._since

    def measured(self, tasks: set[int]) -> None:
        """Count a step that is to be measured, with the losses of these tasks."""
        self._steps += 1
        self._met |= tasks
        self._most_tasks = max(self._most_tasks, len(tasks))

    def updates_of(self, loss_weights: LossWeights, found_inf: Tensor | None) -> None:
        if self._start is None:
            self._start = loss_weights.weights.clone(), loss_weights.skipped.clone()
        self._updates += 1
        self._found_inf = found_inf

    def is_asked(self) -> bool:
        return self.losses >= self._limit

    def ask(self, known: Situation) -> _Cause | None:
        """Why the steps have no effect, if that is certain."""
        self._limit = self.losses + min(self.losses, RARELY)
        if self._start is None:
            return _Cause(_AWAITED, ", ".join(known.awaited)) if known.awaited and self._steps else None
        if self._has_effect(known):
            self.has_changed = True
            self._restart()
            return None
        is_lost = self._is_skipped_on_device() or self._skips_all(known)
        if self._updates < FEWEST_UPDATES or (not is_lost and _awaits_losses(known)):
            return None
        return next(self._causes(known), None)

    def cause(self, known: Situation) -> _Cause | None:
        """Why the updates so far have changed no weight; `None` if they have, or if nothing is wrong."""
        is_too_few = self.has_changed and self._updates < FEWEST_UPDATES
        if self._start is None or is_too_few or self._has_effect(known):
            return None
        return next(self._causes(known), None)

    def _has_effect(self, known: Situation) -> bool:
        if known.loss_weights.rule.is_constant:
            return True  # to be measured is all there is to do
        assert self._start is not None
        # Rescaling to the sum moves them by some rounding errors.
        return not torch.allclose(known.loss_weights.weights.cpu(), self._start[0].cpu(), rtol=1e-5, atol=0.0)

    def _causes(self, known: Situation) -> Iterator[_Cause]:
        assert known.last is not None
        _, before, norms, *_ = known.last.unbind(1)
        present = ~before.isnan()
        weights = known.loss_weights
        if self._skips_all(known):
            tasks = ", ".join(weights.unusable(known.last)) or "some task"
            yield _Cause(_SKIPPED, _times(self._updates), tasks, NOT_POSITIVE if weights.alpha else "")
        if self._is_skipped_on_device():
            yield _Cause(_OVERFLOW)
        if int(present.sum()) < 2 and self._most_tasks < 2:
            met = [task for i, task in enumerate(weights.tasks) if i in self._met or present[i]]
            if len(met) < 2:
                yield _Cause(_NO_OTHER_TASK, ", ".join(met))
            elif weights.rule.optimizer is not None:
                yield _Cause(_ONE_TASK)
        if not self.has_changed and not bool(norms[present].any()):  # tasks that are solved have none either
            yield _Cause(_NO_GRADIENT)
        if (lr := getattr(weights.rule, "lr", 1.0)) < 1e-7:
            yield _Cause(_NO_RATE, lr)

    def _is_skipped_on_device(self) -> bool:
        return self._found_inf is not None and bool(self._found_inf)

    def _skips_all(self, known: Situation) -> bool:
        return self._start is not None and int(known.loss_weights.skipped - self._start[1]) == self._updates


# ------------------------------------------------------------------------------------------------------------- causes


class _Cause(str):
    """A cause in words; those of one `kind` differ in names and counts only."""

    kind: str

    def __new__(cls, kind: str, *values: object) -> Self:
        cause = super().__new__(cls, kind.format(*values))
        cause.kind = kind
        return cause


def _causes_of_no_step(known: Situation) -> Iterator[_Cause]:
    """Why no step comes; the last is given in any case."""
    sums = known.measurement.sums
    if known.is_frozen:
        yield _Cause(_FROZEN)
    if not known.is_training:
        yield _Cause(_EVAL)
    if known.awaited:
        yield _Cause(_AWAITED, ", ".join(known.awaited))
    if (name := _closure_of()) is not None:
        yield _Cause(_CLOSURE, name)
    if sums is not None and not _is_finite(sums):
        yield _Cause(_OVERFLOW)
    if sums is None and known.is_due:
        yield _Cause(_NO_BACKWARD)
    if known.attached is not None:
        yield _Cause(_NO_OPTIMIZER_STEP, known.attached)
    yield _Cause(_NO_STEP)


def _is_finite(sums: Sums) -> bool:
    return bool(torch.isfinite(sums.entries).all())


def _awaits_losses(known: Situation) -> bool:
    """Whether `L(0)` of a task is being averaged, which keeps the weights until then."""
    weights = known.loss_weights
    return weights.alpha > 0 and bool((weights.is_met & weights.initial_losses.isnan()).any())


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


_Message = tuple[str, str]
"""Of a balancer, and of a monitor."""
_MEANT = "Training continues with the weights as they are; if that is meant, balancer.freeze() says so."
_MESSAGE: _Message = (
    f"GradNorm has balanced {{count:,}} losses and updated no weight: {{cause}}. {_MEANT}",
    "The monitor was given {count:,} losses and has measured nothing: {cause}.",
)
_STOPPED: _Message = (
    f"GradNorm has balanced {{count:,}} losses since its last step: {{cause}}. {_MEANT}",
    "The monitor was given {count:,} losses since its last step: {cause}.",
)
_NO_EFFECT: _Message = (
    f"GradNorm has balanced {{count:,}} losses since a weight was last changed: {{cause}}. {_MEANT}",
    "The monitor was given {count:,} losses since it last measured: {cause}.",
)
_NO_STEP = (
    "step() was not called, and the balancer is attached to no optimizer (a copy of an attached balancer is not). "
    "Call balancer.step() after each optimizer.step(), or balancer.attach(optimizer) once; every= measures more rarely"
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
_FROZEN = (
    "it is frozen, as the state_dict that it loaded was. Call balancer.unfreeze() after loading to go on balancing"
)
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
_SKIPPED = "{0} was skipped, since the loss of {1} or its gradient norm was not finite{2}"
_ONE_TASK = (
    "each step measured one task, and Algorithm 1 compares the tasks of one step. Accumulate the gradients of a batch "
    'of each task before optimizer.step(), or use update="closed-form", which keeps averages of the others'
)
_NO_OTHER_TASK = (
    "no task but {0} has been measured. If others come later, they will be balanced then; else check the names of "
    "their losses, and that they are not all in steps that every= leaves out"
)
_NO_GRADIENT = (
    "every gradient at W is exactly zero. Check how the losses depend on W, or give another layer with shared="
)
_NO_RATE = "the learning rate of the weights is {0:g}, which is too small to change one. Raise it: Descent(lr=0.025)"
