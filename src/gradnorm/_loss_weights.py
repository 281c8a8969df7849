"""The loss weights and all that is known of them: `w`, `L(0)`, how often a step was skipped. No network, no graph.

What a step measured comes in as [T] tensors, NaN for tasks that were absent; a rule (`_updates.py`) makes the next
weights of it. Nothing here synchronizes with the device, but for warnings on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from . import functional as rule
from ._arguments import parse_count, parse_number, parse_per_task
from ._errors import ArgumentError, warn
from ._numerics import at_least_float32
from ._types import PerTask
from ._updates import Measured, Update

InitialWeights = Literal["auto", "balanced"] | PerTask | None


MOST_OPENINGS = 10
"""After so many first looks a task whose gradient is still zero starts from the weight that it has."""


class Priorities(MutableMapping[str, float]):
    """`p_i` by task: read from the host, and written to the device without synchronizing.

    Args:
        values: As they are now, by task.
        changed: Called after a change.
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
        raise ArgumentError(f"priorities[{task!r}] cannot be deleted; set it to 1, as for a task that was given none")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


class LossWeights(nn.Module):
    """`w_i`, sum T, and the rule that updates them.

    Args:
        tasks: Names.
        update: The rule.
        alpha: α of the targets.
        priorities: `p_i` of the targets.
        initial_losses: As for `GradNorm`.
        initial_weights: As for `GradNorm`.

    Attributes:
        weights: [T].
        skipped: [], how many steps left the weights unchanged because of bad numbers.

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
    _bad: Tensor
    _opened: Tensor
    _priorities: Tensor | None

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
        self.register_buffer("skipped", torch.tensor(0))
        self.register_buffer("_bad", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("_opened", torch.full((count,), not is_balanced))
        self.register_buffer("_priorities", None, persistent=False)
        self.priorities = priorities
        self.rule = update.bound(self.weights)
        self._is_open = [not is_balanced] * count  # the host's copy, which spares it synchronizing
        self._openings = 0
        self._warned = False
        self.register_load_state_dict_post_hook(type(self)._take_over)

    @property
    def initial_losses(self) -> Tensor:
        """[T], `L_i(0)`; NaN where it is not known yet."""
        known = self._initial_counts >= self._initial_steps
        return torch.where(known, self._initial_sums / self._initial_counts, torch.nan)

    @property
    def priorities(self) -> Priorities:
        """`p_i` by task, 1 unless given; assigning `None` makes all of them 1."""
        return Priorities(self._priority_of, self._prioritize)

    @priorities.setter
    def priorities(self, priorities: PerTask | None) -> None:
        numbers = (
            [1.0] * len(self.tasks) if priorities is None else parse_per_task("priorities", priorities, self.tasks)
        )
        self._priority_of = dict(zip(self.tasks, numbers, strict=True))
        self._priorities = None
        if priorities is not None:
            self._prioritize()

    def _prioritize(self) -> None:
        if self._priorities is None:
            self._priorities = torch.ones_like(self.weights)
        for place, value in zip(self._priorities, self._priority_of.values(), strict=True):
            place.fill_(value)  # a copy from the host would synchronize

    @property
    def bad(self) -> list[str]:
        """The tasks that have kept the weights from being updated; reading them synchronizes with the device."""
        return [task for task, count in zip(self.tasks, self._bad.tolist(), strict=True) if count]

    def assign(self, weights: PerTask) -> None:
        """Continue with these weights, rescaled to sum T."""
        numbers = _tensor(parse_per_task("weights", weights, self.tasks))
        self.weights.copy_(rule.renormalize(numbers, float(len(self.tasks))))
        self._opened.fill_(True)
        self._is_open = [True] * len(self.tasks)

    def averaged(self) -> Tensor:
        """[T], the weights averaged over the steps, sum T."""
        return rule.renormalize(self._weight_sums, float(len(self.tasks)))

    def note_step(self) -> None:
        """A step was made with these weights."""
        self._weight_sums += self.weights

    # ---------------------------------------------------------------------------------------------- the first step

    def awaits_opening(self, tasks: Sequence[int], is_parallel: bool) -> bool:
        """Whether weights to start from are still to be found for one of these tasks.

        Where processes share the batch only in the first step, as they cannot know which tasks are new to another.
        """
        if is_parallel:
            return not any(self._is_open)
        return not all(self._is_open[task] for task in tasks)

    def open(self, raw_norms: Tensor, present: Tensor, has_begun: bool = False) -> Tensor | None:
        """Balance the tasks that are new; returns the weights, if they changed.

        This reads values, and so synchronizes with the device. A norm that is not finite, as a loss scale that is still
        too large brings about, is none, and neither is a norm of zero: the next steps try again.

        Args:
            raw_norms: [T], NaN for tasks that were not measured.
            present: bool, [T], the tasks that run backward now.
            has_begun: Other tasks have run backward in this step, so that their weights stay until its end.
        """
        fresh = present & ~self._opened
        if not bool(torch.isfinite(raw_norms[fresh]).all()) or not bool(fresh.any()):
            return None
        self._openings += 1
        self.rule.open(self.weights, raw_norms, fresh, self._priorities, has_begun)
        self._opened |= fresh & (raw_norms > 0) if self._openings < MOST_OPENINGS else fresh
        self._is_open = self._opened.tolist()
        return self.weights.clone()

    # ---------------------------------------------------------------------------------------------------- each step

    def update(self, losses: Tensor, raw_norms: Tensor, present: Tensor, found_inf: Tensor | None = None) -> Tensor:
        """`w(t) → w(t+1)`, from what a step measured.

        Args:
            losses: [T], `L_i`.
            raw_norms: [T], `‖∇_W L_i‖`.
            present: bool, [T].
            found_inf: Not 0 where a fused optimizer has skipped this step on the device.

        Returns:
            [T, 5], the step's loss, weight, norm, target and rate per task, NaN where it was absent.
        """
        before = self.weights.clone()
        ran = present if found_inf is None else present & (found_inf == 0)
        initial, is_waiting = self._note_initial(torch.where(ran, losses, torch.nan))
        ratios = rule.loss_ratios(losses, initial)
        usable = torch.isfinite(losses) & torch.isfinite(before * raw_norms)
        if self.alpha != 0:
            usable &= (losses > 0) & torch.isfinite(ratios)
        accepted = ran & (usable | ~present).all()
        measured = Measured(losses, initial, raw_norms, accepted)
        G, targets, rates = self.rule.step(self.weights, measured, self.alpha, self._priorities)
        self._note_skips(ran & ~usable & ~is_waiting, losses)
        values = torch.stack([losses, before, G, targets, rates], 1)
        return torch.where(present.unsqueeze(1), values, torch.nan)

    def _note_initial(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """[T], `L_i(0)`; and whether this step's loss was taken in and more are wanted."""
        sums, counts = rule.initial_mean(losses, self._initial_sums, self._initial_counts, self._initial_steps)
        is_waiting = (counts > self._initial_counts) & (counts < self._initial_steps)
        self._initial_sums.copy_(sums)
        self._initial_counts.copy_(counts)
        return self.initial_losses, is_waiting

    def _note_skips(self, bad: Tensor, losses: Tensor) -> None:
        self._bad += bad
        self.skipped += bad.any()
        # Reading the counter would synchronize with a GPU in every step; there, see `skipped` in log_dict().
        if self._warned or bad.device.type != "cpu" or not bad.any():
            return
        self._warned = True
        warn(self._reason(bad.tolist(), losses.tolist()))

    def _reason(self, bad: Sequence[bool], losses: Sequence[float]) -> str:
        names = [task for task, is_bad in zip(self.tasks, bad, strict=True) if is_bad]
        values = [loss for loss, is_bad in zip(losses, bad, strict=True) if is_bad]
        if all(-math.inf < loss <= 0 for loss in values):
            what = "is not positive, and α > 0 compares losses with their first values"
            remedy = "Losses that may be zero or negative need alpha=0, which balances gradients alone"
        else:
            what = "or its gradient norm is not finite, or its first value is not positive"
            remedy = "Look at the task itself"
        return (
            f"GradNorm left the loss weights unchanged: the loss of {', '.join(names)} {what}. {remedy}. "
            "Training continues; 'skipped' in log_dict() counts such steps."
        )

    # --------------------------------------------------------------------------------------------- nn.Module, saving

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """As `nn.Module._apply`, but `half()` and `bfloat16()` leave the rule in float32."""
        super()._apply(lambda tensor: _keep_wide(tensor, fn(tensor)), recurse)
        self.rule.rebind(self.weights)
        return self

    def _take_over(self, *_: object) -> None:
        """After a state was loaded, perhaps by putting other tensors in place of these."""
        self.rule.rebind(self.weights)
        self._is_open = self._opened.tolist()


def _tensor(values: Sequence[float]) -> Tensor:
    """In float32, whatever the default type is: the rule is not for narrower ones."""
    return torch.tensor(values, dtype=torch.float32)


def _parse_initial_losses(given: int | PerTask | None, tasks: Sequence[str]) -> tuple[int, list[float] | None]:
    if given is None:
        return 1, None
    if isinstance(given, int) and not isinstance(given, bool):
        return parse_count("initial_losses", given, low=1), None
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


def _keep_wide(before: Tensor, after: Tensor) -> Tensor:
    if not before.is_floating_point() or at_least_float32(after).dtype == after.dtype:
        return after
    return before.to(after.device)
