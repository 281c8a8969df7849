"""Update rules of the loss weights: Algorithm 1, or its fixed point.

An `Update` is given to `GradNorm(update=…)`, which copies it. It reads the measurements of a step and changes the
weights in place; whether that step counts is known on the device only, so every change is masked.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import functional as rule
from ._arguments import parse_number
from ._errors import ArgumentError
from ._optimizer import WeightOptimizer
from ._state import StatefulModule
from ._types import OptimizerFactory

LR = 0.025
"""Learning rate of the weights in the paper's runs on NYUv2."""


class Measured(NamedTuple):
    """The measurements of a step, T numbers each; NaN for absent tasks.

    Attributes:
        weights: `w_i` with which the step trained.
        losses: `L_i`.
        initial_losses: `L_i(0)`; NaN where not known yet.
        loss_ratios: `L_i / L_i(0)`.
        raw_norms: `‖∇_W L_i‖`.
        gradient_norms: `G_i`.
        accepted: bool, whether the step counts: [], or where tasks are absent [T], false for those.
        is_complete: Whether no task is absent.
    """

    weights: Tensor
    losses: Tensor
    initial_losses: Tensor
    loss_ratios: Tensor
    raw_norms: Tensor
    gradient_norms: Tensor
    accepted: Tensor
    is_complete: bool


class Update(StatefulModule, ABC):
    """A rule by which loss weights are updated."""

    starts_balanced = False
    """Whether the first step is balanced unless `initial_weights` says otherwise."""
    is_constant = False
    """Whether weights are kept on purpose."""

    def bound(self, weights: Tensor) -> Update:
        """A copy of this rule that updates `weights`, [T], in place."""
        mine = copy.deepcopy(self)
        mine._bind(weights)
        return mine

    def rebind(self, weights: Tensor) -> None:
        """Continue with another tensor in place of the weights, as after `Module.to`."""

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of the weights; `None` if the rule has none."""
        return None

    @abstractmethod
    def _bind(self, weights: Tensor) -> None:
        """Create the state."""

    @abstractmethod
    def step(
        self, weights: Tensor, measured: Measured, alpha: float, priorities: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`w(t) → w(t+1)`, in place, where the step counts; returns the targets and the rates, [T] each."""

    def open(
        self, weights: Tensor, raw_norms: Tensor, fresh: Tensor, priorities: Tensor | None, has_begun: bool
    ) -> None:
        """Starting weights for new tasks, in place: `w_i ∝ p_i / ‖∇_W L_i‖`, balanced against the others.

        Args:
            weights: [T].
            raw_norms: [T], NaN for tasks that are absent.
            fresh: bool, [T], the new tasks; a norm that is zero or not finite leaves the weight unchanged.
            priorities: `p_i`.
            has_begun: Keep the others' weights, so that the sum is another one until the end of the step.
        """
        norms = torch.where((raw_norms > 0) & torch.isfinite(raw_norms), raw_norms, torch.nan)
        known = self._known_norms(torch.where(fresh, torch.nan, norms))
        level = torch.where(known > 0, weights, 0.0).sum()
        level = level / rule.closed_form_weights(known, None, 0.0, priorities).nansum()
        level = torch.where(torch.isfinite(level), level, 1.0)
        wanted = level * rule.closed_form_weights(torch.where(fresh, norms, torch.nan), None, 0.0, priorities)
        if has_begun:
            weights.copy_(torch.where(wanted > 0, wanted, weights))
        else:
            shared = _share(weights, torch.where(known > 0, weights, wanted))
            weights.copy_(torch.where(shared.amin() > 0, shared, weights))

    def _known_norms(self, raw_norms: Tensor) -> Tensor:
        """[T], the norms of tasks that were measured before, given those of this batch; NaN for the others."""
        return raw_norms


class Descent(Update):
    """Algorithm 1 of the paper: one step of an optimizer on `L_grad = Σ |G_i − Ḡ r_i^α|` (eq. 2).

    Args:
        lr: Learning rate of the weights; the default is the paper's for NYUv2.
        optimizer: Factory for their optimizer, called as `optimizer([weights], lr=lr)`.
        min_weight: Lower bound on each weight, applied before renormalization (not in the paper, which leaves open what
            becomes of a weight that an update takes below zero).

    Raises:
        ArgumentError: For each argument that cannot be used.

    Examples:
        >>> import torch
        >>> from gradnorm import GradNorm
        >>> balancer = GradNorm(["near", "far"], update=Descent(lr=0.01, optimizer=torch.optim.SGD))
        >>> scheduler = torch.optim.lr_scheduler.StepLR(balancer.optimizer, step_size=6000, gamma=0.2)
    """

    def __init__(
        self,
        lr: float = LR,
        optimizer: OptimizerFactory = torch.optim.Adam,
        min_weight: float = 1e-4,
    ) -> None:
        super().__init__()
        self.lr = parse_number("lr", lr, low=0.0, open_low=True, high=1e6)
        self.min_weight = parse_number("min_weight", min_weight, low=0.0, open_low=True, high=1.0)
        self._factory = optimizer
        self._optimizer: WeightOptimizer | None = None
        WeightOptimizer(optimizer, torch.ones(2), self.lr)  # raises early

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of the weights; `None` before the rule is bound to weights."""
        return None if self._optimizer is None else self._optimizer.optimizer

    def step(
        self, weights: Tensor, measured: Measured, alpha: float, priorities: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert self._optimizer is not None
        before, _, _, ratios, raw_norms, G, accepted, is_complete = measured
        rates = rule.inverse_training_rates(ratios, is_complete)
        targets = rule.target_norms(rule.mean_gradient_norm(G, is_complete), rates, alpha, priorities)
        gradients = rule.weight_gradients(G, targets, raw_norms)
        total = float(len(weights)) if is_complete else _total(before, accepted)

        def finish(updated: Tensor) -> Tensor:
            present = updated if is_complete else torch.where(accepted, updated, torch.nan)
            return rule.renormalize(present, total, self.min_weight, is_complete)

        self._optimizer.step(gradients, finish, accepted, before)
        return targets, rates

    def rebind(self, weights: Tensor) -> None:
        assert self._optimizer is not None
        self._optimizer.rebind(weights)

    def _bind(self, weights: Tensor) -> None:
        self._optimizer = WeightOptimizer(self._factory, weights, self.lr)

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"lr={self.lr:g}, min_weight={self.min_weight:g}"


class ClosedForm(Update):
    """The fixed point of Algorithm 1, solved for: `w_i ∝ p_i r̂_i^α / n̂_i`, with sum T.

    `n̂_i` and `L̂_i`, from which `r̂_i` is made, are bias-corrected exponential averages of `‖∇_W L_i‖` (root mean
    square) and of `L_i`; `r̂_i` is clamped to [1/10, 10]. There is no learning rate, weights are positive at any ratio
    of the norms, and the first step is balanced already, so that the unit of a loss does not matter: it changes the
    network's gradient by a factor common to all tasks, which Adam cancels and which scales plain SGD's learning rate.

    An absent task keeps its averages, from which its weight is still computed: tasks may come one per batch.

    Not in the paper. Parts of it are in Wang et al. 2021 and 2023 (weights of physics-informed networks), Esser et al.
    2021 (VQGAN's λ), Défossez et al. 2022 (encodec's balancer), He et al. 2022 (MetaBalance) and Lin et al. 2023
    (DB-MTL).

    Args:
        smoothing: β in [0, 1) of the averages, `x̂ ← β x̂ + (1 − β) x`; 0 uses each step's own values.

    Raises:
        ArgumentError: `smoothing` is not in [0, 1).

    Examples:
        >>> from gradnorm import GradNorm
        >>> balancer = GradNorm(["near", "far"], update=ClosedForm(smoothing=0.99))
    """

    starts_balanced = True
    _averages: Tensor

    def __init__(self, smoothing: float = 0.9) -> None:
        super().__init__()
        self.smoothing = parse_number("smoothing", smoothing, low=0.0, high=1.0)

    def step(
        self, weights: Tensor, measured: Measured, alpha: float, priorities: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        before, losses, initial_losses, _, raw_norms, G, accepted, is_complete = measured
        seen = accepted & (raw_norms > 0)  # a gradient of zero says nothing of its scale
        values = torch.stack([raw_norms.square(), losses, torch.ones_like(losses)])
        moved = torch.lerp(self._averages, values, 1 - self.smoothing)
        torch.where(seen, moved, self._averages, out=self._averages)
        squares, mean_losses = self._corrected()
        ratios = rule.loss_ratios(mean_losses, initial_losses)
        rates = rule.bounded_rates(rule.inverse_training_rates(ratios))
        targets = rule.target_norms(rule.mean_gradient_norm(G, is_complete), rates, alpha, priorities)
        wanted = rule.closed_form_weights(squares.sqrt(), rates, alpha, priorities)
        shared = _share(before, wanted)
        is_usable = shared.amin() > 0
        torch.where(is_usable & (accepted.any() if accepted.dim() else accepted), shared, before, out=weights)
        return targets, rates

    def _known_norms(self, raw_norms: Tensor) -> Tensor:
        return torch.where(self._averages[2] > 0, self._corrected()[0].sqrt(), raw_norms)

    def _corrected(self) -> Tensor:
        """[2, T], `n̂_i²` and `L̂_i`, NaN for tasks that were never measured.

        The average of ones beside them is what a bias-corrected average divides by.
        """
        return self._averages[:2] / self._averages[2]

    def _bind(self, weights: Tensor) -> None:
        self.register_buffer("_averages", weights.new_zeros(3, len(weights)))

    def extra_repr(self) -> str:
        """The options, for `print`."""
        return f"smoothing={self.smoothing:g}"


def _share(weights: Tensor, wanted: Tensor) -> Tensor:
    """`weights`, in which the tasks with a wanted weight share, in proportion to it, what the others leave of T.

    NaN and infinity count as not wanted; if no task has a wanted weight the result is NaN.
    """
    wanted = torch.nan_to_num(wanted, 0.0, 0.0, 0.0)
    others = weights * (wanted == 0)
    left = float(len(weights)) - others.sum()
    return others + wanted * (left / wanted.sum())


def _total(weights: Tensor, known: Tensor) -> Tensor:
    """The sum T less the weights of the other tasks."""
    return float(len(weights)) - torch.where(known, 0.0, weights).sum()


UPDATES: dict[str, type[Update]] = {"descent": Descent, "closed-form": ClosedForm}
"""Update rules by the names that `GradNorm(update=…)` takes."""


def parse_update(update: Update | str) -> Update:
    """`update` as an object; a name selects the rule with its defaults.

    Raises:
        ArgumentError: It is neither.
    """
    if isinstance(update, str) and update in UPDATES:
        return UPDATES[update]()
    if not isinstance(update, Update):
        given = f"the class {update.__name__}: call it" if isinstance(update, type) else repr(update)
        raise ArgumentError(f'update must be "descent", "closed-form", Descent(…) or ClosedForm(…), got {given}')
    return update
