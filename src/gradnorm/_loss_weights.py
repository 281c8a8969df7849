"""The loss weights and their state: `w`, `L(0)`, the number of skipped steps. Independent of network and graph.

The measurements of a step are [T] tensors, NaN for absent tasks; a rule (`_updates.py`) computes the next weights from
them. Nothing here synchronizes with the device, except warnings on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from . import functional as rule
from ._arguments import parse_count, parse_number, parse_per_task
from ._errors import ArgumentError, warn
from ._state import StatefulModule
from ._types import PerTask
from ._updates import Measured, Update

InitialWeights = Literal["auto", "balanced"] | PerTask | None


MOST_TRIES = 10
"""Number of steps after which a task whose gradient is still zero starts from its current weight."""


class Priorities(MutableMapping[str, float]):
    """`p_i` by task: read from the host, and written to the device without synchronizing.

    Args:
        values: Current values by task.
        changed: Callback after a change.
    """

    def __init__(self, values: dict[str, float], changed: Callable[[], None]) -> None:
        self._values = values
        self._changed = changed

    def __getitem__(self, task: str) -> float:
        return self._values[task]

    def __setitem__(self, task: str, value: float) -> None:
        if task not in self._values:
            raise ArgumentError(f"priorities holds {task!r}, which is no task; the tasks are {', '.join(self._values)}")
        self._values[task] = parse_number(f"priorities[{task!r}]", value, low=0.0, open_low=True)
        self._changed()

    def __delitem__(self, task: str) -> None:
        raise ArgumentError(f"priorities[{task!r}] cannot be deleted; set it to 1, the default")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


class LossWeights(StatefulModule):
    """`w_i`, sum T, and the rule that updates them.

    Args:
        tasks: Task names.
        update: Update rule.
        alpha: α of the targets.
        priorities: `p_i` of the targets.
        initial_losses: As for `GradNorm`.
        initial_weights: As for `GradNorm`.

    Attributes:
        weights: [T], `w_i`.
        skipped: [], the number of steps that left the weights unchanged because of bad numbers.

    Examples:
        The second task has the larger gradient, so its weight falls.

        >>> import torch
        >>> from gradnorm import Descent
        >>> loss_weights = LossWeights(["near", "far"], Descent(), alpha=0.0)
        >>> values = loss_weights.update(torch.ones(2), raw_norms=torch.tensor([1.0, 9.0]), present=torch.ones(2) > 0)
        >>> bool(loss_weights.weights[0] > loss_weights.weights[1])
        True
    """

    weights: Tensor
    skipped: Tensor
    _initial_sums: Tensor
    _initial_counts: Tensor
    _weight_sums: Tensor
    _opened: Tensor
    _priorities: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        update: Update,
        alpha: float,
        *,
        priorities: PerTask | None = None,
        initial_losses: int | PerTask | None = None,
        initial_weights: InitialWeights = "auto",
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.alpha = alpha
        count = len(self.tasks)
        self._initial_steps, given = _parse_initial_losses(initial_losses, self.tasks)
        weights, is_balanced = _parse_initial_weights(initial_weights, self.tasks, update)
        float32 = torch.float32
        self.register_buffer("weights", weights)
        self.register_buffer("_initial_sums", torch.zeros(count, dtype=float32) if given is None else _tensor(given))
        self.register_buffer("_initial_counts", torch.full((count,), 0.0 if given is None else 1.0, dtype=float32))
        self.register_buffer("_weight_sums", torch.zeros(count, dtype=float32))
        self.register_buffer("skipped", torch.tensor(0.0, dtype=float32))
        self.register_buffer("_opened", torch.full((count,), 0.0 if is_balanced else 1.0, dtype=float32))
        self.register_buffer("_priorities", torch.ones(count, dtype=float32), persistent=False)
        self._priority_of: dict[str, float] = {}
        self.priorities = priorities
        self.rule = update.bound(weights)
        self._is_open = [not is_balanced] * count  # a copy on the host, which avoids synchronizing
        self._tries = [0] * count
        self._tried: set[int] = set()  # in the step in progress
        self._is_uneven = False
        self._looks = 0
        self._knows_initial = given is not None  # on the host, likewise
        self._warned = False

    @property
    def initial_losses(self) -> Tensor:
        """[T], `L_i(0)`; NaN where it is not known yet."""
        if self._knows_initial:
            return self._initial_sums / self._initial_counts
        return torch.where(
            self._has_initial(self._initial_counts), self._initial_sums / self._initial_counts, torch.nan
        )

    @property
    def priorities(self) -> Priorities:
        """`p_i` by task, 1 unless given; assigning `None` makes all of them 1."""
        return Priorities(self._priority_of, self._prioritize)

    @priorities.setter
    def priorities(self, priorities: PerTask | None) -> None:
        count = len(self.tasks)
        numbers = [1.0] * count if priorities is None else parse_per_task("priorities", priorities, self.tasks)
        self._priority_of.update(zip(self.tasks, numbers, strict=True))
        self._prioritize()

    def _prioritize(self) -> None:
        values = self._priority_of.values()
        self._initial["_priorities"] = _tensor(list(values))
        for place, value in zip(self._priorities, values, strict=True):
            place.fill_(value)  # a copy from the host would synchronize

    @property
    def _p(self) -> Tensor | None:
        """[T], `p_i`; `None` where all are 1."""
        return None if all(value == 1.0 for value in self._priority_of.values()) else self._priorities

    def unusable(self, values: Tensor) -> list[str]:
        """The tasks whose numbers in a step were unusable; `values` is what `update` returned.

        Reading them synchronizes with the device.
        """
        losses, weights, G, *_ = values.unbind(1)
        bad = ~self._usable(losses, rule.loss_ratios(losses, self.initial_losses), G) & ~weights.isnan()
        return [task for task, is_bad in zip(self.tasks, bad.tolist(), strict=True) if is_bad]

    def assign(self, weights: PerTask) -> None:
        """Continue with these weights, rescaled to sum T."""
        numbers = _tensor(parse_per_task("weights", weights, self.tasks))
        self._value("weights").copy_(rule.renormalize(numbers, float(len(self.tasks))))
        self.abandon_opening()

    def averaged(self) -> Tensor:
        """[T], the weights averaged over the steps, sum T."""
        return rule.renormalize(self._weight_sums, float(len(self.tasks)))

    def note_step(self, count: int) -> None:
        """A step with these weights, the `count`-th."""
        self._weight_sums.lerp_(self.weights, 1 / count)  # a mean: over millions of steps a sum would stop growing
        for task in self._tried:
            self._tries[task] += 1
        self._tried.clear()

    # ---------------------------------------------------------------------------------------------- the first step

    def awaits_opening(self, tasks: Sequence[int], is_parallel: bool) -> bool:
        """Whether one of these tasks still needs a starting weight.

        Where processes share the batch only in the first step: no process knows which tasks are new to another.
        """
        if is_parallel:
            return not any(self._is_open)
        return not all(self._is_open[task] for task in tasks)

    def open(self, raw_norms: Tensor, present: Tensor, has_begun: bool = False) -> Tensor | None:
        """Balance the new tasks; returns the weights if they changed.

        Reads values, and so synchronizes with the device. A norm that is not finite, as under too large a loss scale,
        or that is zero does not count: the next steps try again.

        Args:
            raw_norms: [T], NaN for tasks that were not measured.
            present: bool, [T], the tasks that run backward now.
            has_begun: Whether other tasks have run backward in this step, so that their weights stay until its end.
        """
        opened = self._opened > 0.5
        fresh = present & ~opened
        if not bool(torch.isfinite(raw_norms[fresh]).all()) or not bool(fresh.any()):
            return None
        self.rule.open(self.weights, raw_norms, fresh, self._p, has_begun)
        self._is_uneven |= has_begun
        self._tried.update(task for task, is_fresh in enumerate(fresh.tolist()) if is_fresh)
        is_late = torch.tensor([tries >= MOST_TRIES - 1 for tries in self._tries], device=fresh.device)
        opened |= fresh & ((raw_norms > 0) | is_late)
        self._opened.copy_(opened)
        self._is_open = opened.tolist()
        return self.weights.clone()

    def abandon_opening(self) -> None:
        """Start from the current weights."""
        self._value("_opened").fill_(1.0)
        self._is_open = [True] * len(self.tasks)

    # ---------------------------------------------------------------------------------------------------- each step

    def update(
        self, losses: Tensor, raw_norms: Tensor, present: Tensor | None = None, found_inf: Tensor | None = None
    ) -> Tensor:
        """`w(t) → w(t+1)`, from the measurements of a step.

        Args:
            losses: [T], `L_i`.
            raw_norms: [T], `‖∇_W L_i‖`.
            present: bool, [T]. Default: all.
            found_inf: Nonzero where a fused optimizer has skipped this step on the device.

        Returns:
            [T, 5], the step's loss, weight, norm, target and rate per task, NaN where it was absent.
        """
        before = self.weights.clone()
        is_waiting = None if self._knows_initial else self._note_initial(losses, present, found_inf)
        initial = self.initial_losses
        G = rule.gradient_norms(before, raw_norms)
        ratios = rule.loss_ratios(losses, initial)
        usable = self._usable(losses, ratios, G)
        if present is not None:
            usable = usable | ~present
        accepted = usable.all()
        bad = ~accepted if is_waiting is None else ~(usable | is_waiting).all()
        if present is not None:
            accepted = present & accepted
        if found_inf is not None:
            accepted, bad = accepted & (found_inf == 0), bad & (found_inf == 0)
        measured = Measured(before, losses, initial, ratios, raw_norms, G, accepted, is_complete=present is None)
        targets, rates = self.rule.step(self.weights, measured, self.alpha, self._p)
        self._note_skips(bad, usable, losses)
        values = torch.stack([losses, before, G, targets, rates], 1)
        return values if present is None else torch.where(present.unsqueeze(1), values, torch.nan)

    def restore_sum(self) -> None:
        """Back to the sum T, where a task that was balanced within the step has changed it."""
        if self._is_uneven:
            self._is_uneven = False
            self.weights.copy_(rule.renormalize(self.weights, float(len(self.tasks))))

    def _usable(self, losses: Tensor, ratios: Tensor, G: Tensor) -> Tensor:
        """bool, [T]: whether a task's numbers are usable."""
        if self.alpha == 0:
            return G + losses.abs() < torch.inf  # and so not NaN either
        return (G + ratios < torch.inf) & (ratios > 0)

    def _note_initial(self, losses: Tensor, present: Tensor | None, found_inf: Tensor | None) -> Tensor:
        """bool, [T]: whether this step's loss was taken into `L_i(0)` and more are wanted."""
        if present is not None:
            losses = torch.where(present, losses, torch.nan)
        if found_inf is not None:
            losses = torch.where(found_inf == 0, losses, torch.nan)
        sums, counts = rule.initial_mean(losses, self._initial_sums, self._initial_counts, self._initial_steps)
        is_waiting = (counts > self._initial_counts) & (counts < self._initial_steps - 0.5)
        self._initial_sums.copy_(sums)
        self._initial_counts.copy_(counts)
        self._look_at_initial()
        return is_waiting

    @property
    def is_met(self) -> Tensor:
        """bool, [T]: whether `L_i(0)` is known or being averaged."""
        return self._initial_counts > 0

    def _has_initial(self, counts: Tensor) -> Tensor:
        """bool, [T]: whether `L_i(0)` is known; averaged counts need not be integers."""
        return counts > self._initial_steps - 0.5

    def _look_at_initial(self) -> None:
        """Check whether all `L_i(0)` are known, in ever longer intervals where that synchronizes with the device."""
        self._looks += 1
        is_free, is_meta = self.weights.device.type == "cpu", self.weights.is_meta  # where there is nothing to read
        if is_free or (not is_meta and self._looks & (self._looks - 1) == 0):
            self._knows_initial = bool(self._has_initial(self._initial_counts).all())

    def _note_skips(self, bad: Tensor, usable: Tensor, losses: Tensor) -> None:
        self.skipped.add_(bad)
        # Reading the counter would synchronize with a GPU in every step; there, see `skipped` in log_dict().
        if self._warned or bad.device.type != "cpu" or not bad:
            return
        self._warned = True
        warn(self._reason(usable.tolist(), losses.tolist()))

    def _reason(self, usable: Sequence[bool], losses: Sequence[float]) -> str:
        names = [task for task, is_usable in zip(self.tasks, usable, strict=True) if not is_usable]
        values = [loss for loss, is_usable in zip(losses, usable, strict=True) if not is_usable]
        if self.rule.is_constant:
            return f"The monitor has met a loss of {', '.join(names)}, or its gradient norm, that is not finite."
        if self.alpha > 0 and all(-math.inf < loss <= 0 for loss in values):
            what = "is not positive, and α > 0 compares losses with their first values"
            remedy = "Losses that may be zero or negative need alpha=0, which balances gradients alone"
        else:
            what = "or its gradient norm is not finite, or the loss is not positive"
            what = what if self.alpha > 0 else what.partition(",")[0]
            remedy = "Check the task itself"
        return (
            f"GradNorm left the loss weights unchanged: the loss of {', '.join(names)} {what}. {remedy}. "
            "Training continues; 'skipped' in log_dict() counts such steps."
        )

    # --------------------------------------------------------------------------------------------- nn.Module, saving

    def reset_parameters(self) -> None:
        """Back to the initial state."""
        super().reset_parameters()
        self._tries = [0] * len(self.tasks)
        self._tried.clear()
        self._is_uneven = False
        self._warned = False

    def _read(self) -> None:
        self.rule.rebind(self.weights)
        means = self._value("_weight_sums")
        if means.sum() > 1.5 * len(self.tasks):  # sums, as they were saved before
            means.copy_(rule.renormalize(means, float(len(self.tasks))))
        self._is_open = (self._value("_opened") > 0.5).tolist()
        self._knows_initial = bool(self._has_initial(self._value("_initial_counts")).all())

    def _moved(self) -> None:
        self.rule.rebind(self.weights)

    def _damaged(self) -> list[str]:
        return super()._damaged() + ([] if bool((self.weights > 0).all()) else ["weights"])


def _tensor(values: Sequence[float]) -> Tensor:
    """In float32, whatever the default type is: the rule is not for narrower ones."""
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _parse_initial_losses(given: int | PerTask | None, tasks: Sequence[str]) -> tuple[int, list[float] | None]:
    if given is None:
        return 1, None
    if isinstance(given, Integral) and not isinstance(given, bool):
        return parse_count("initial_losses", int(given), low=1), None
    return 1, parse_per_task("initial_losses", given, tasks)  # pyright: ignore[reportArgumentType]


def _parse_initial_weights(given: InitialWeights, tasks: Sequence[str], update: Update) -> tuple[Tensor, bool]:
    """The weights, and whether the first step is to be balanced."""
    if isinstance(given, str) and given == "auto":
        given = "balanced" if update.starts_balanced else None
    if given is None or (isinstance(given, str) and given == "balanced"):
        return _tensor([1.0] * len(tasks)), given is not None
    if isinstance(given, str):
        raise ArgumentError(f'initial_weights must be "balanced", one number per task or None, got {given!r}')
    return rule.renormalize(_tensor(parse_per_task("initial_weights", given, tasks)), float(len(tasks))), False
