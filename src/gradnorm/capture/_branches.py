"""The measurement without hooks, for networks that are one compiled graph: sums accumulate in a tensor's gradient.

Inside one compiled graph the tasks cannot be told apart. So the network forks its features by an identity whose
backward also returns the squared norm of each fork's gradient, as the gradient of a `probe`; inside a compiled graph
the weighted sum of the losses returns losses and factors the same way. Autograd accumulates all of it over forks,
features and micro-batches; nothing here causes a graph break.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from .._errors import StateError, warn
from .._numerics import at_least_float32
from .._torch_private import at_end_of_backward, changes, current_backward
from ._first_look import UNSEEN
from ._looks import a_look
from ._measurement import BalancedLoss, FindOpening, Measurement, Opening, Present, Sums, Wanted
from ._products import refusal


class AtBranches(Measurement):
    """`at="branches"`: gradients at the features that the network passes through `branch`.

    Args:
        like: [T], for type and device.
    """

    def __init__(self, *args: Any, like: Tensor) -> None:
        super().__init__(*args)
        self._branched = self._is_compiled = False
        self._kept: Tensor | None = None
        self._backward: int | None = None
        self._alone: tuple[Tensor, int] | None = None
        self.moved(like)

    @property
    def sums(self) -> Sums | None:
        """The sums over the backwards since the last `clear`; `None` if there was none."""
        # Outside of compiled graphs the probe holds what no balanced loss has measured, or not to its end.
        is_ours = self._is_compiled or self._backward == current_backward()
        found = [rows for rows in (self._kept, self._probe.grad if is_ours else None) if rows is not None]
        return self._read(sum(found[1:], found[0])) if found else None

    def clear(self) -> None:
        super().clear()
        self._probe.grad = self._kept = None
        self._is_compiled = False

    def moved(self, like: Tensor) -> None:
        # [5, T], the leaf whose gradient holds squared norms, losses, factors, counts and scales.
        self._probe = like.new_zeros(5, len(like)).requires_grad_()
        super().moved(like)

    def branch(self, features: Tensor) -> tuple[Tensor, ...]:
        """One copy of the features per task."""
        self._branched = True
        return Fork.apply(features, self._probe)  # pyright: ignore[reportReturnType]

    def check_balanced(self) -> None:
        if not self._branched:
            raise StateError('at="branches" measures in branch(), which the network never called: see its example')

    def balanced(
        self, losses: Present, values: Tensor, weights: Tensor, mask: Tensor, opening: FindOpening, wanted: Wanted
    ) -> Tensor:
        if torch.compiler.is_compiling():
            self._is_compiled = True
            return WeightedSum.apply(values, weights, mask, self._probe)  # pyright: ignore[reportReturnType]
        found = opening()
        # These reference only nodes nearer the leaves than the balanced loss, as they must: see `_backward_pass.py`.
        begin = partial(self._begin, losses if found else (), values.detach(), mask, found, wanted)
        return BalancedLoss.apply(values, weights, begin)  # pyright: ignore[reportReturnType]

    def norms(self, sums: Sums) -> Tensor:
        return sums.entries.squeeze(1).sqrt()

    def add(self, sums: Sums) -> None:
        self._keep(torch.stack([sums.entries.squeeze(1), *sums.per_task]))

    def nothing(self, like: Tensor) -> Sums:
        return self._read(torch.zeros_like(self._probe))

    def _read(self, rows: Tensor) -> Sums:
        squares, losses, factors, counts, scales = rows
        return Sums(squares.unsqueeze(1), losses, factors, counts, scales)

    def _begin(
        self,
        losses: Present,
        values: Tensor,
        mask: Tensor,
        opening: Opening | None,
        wanted: Wanted,
        factor: Tensor,
        weights: Tensor,
    ) -> Tensor:
        if not self.begin(is_again=False):
            return weights
        if self._backward != (backward := current_backward()):
            self._backward = backward
            if self._is_compiled and self._probe.grad is not None:
                self._keep(self._probe.grad)
            self._probe.grad = None  # what backwards without a balanced loss have left there
            at_end_of_backward(self._ended)
        if opening is not None:
            tasks = [task for task, loss in enumerate(losses) if loss is not None]
            opening.look(tasks, self.sums, partial(self._looked, losses, values, mask, factor, opening))
            weights = weights if opening.weights is None else opening.weights
        squares = self._probe.new_zeros(1, len(mask))
        rows = torch.cat([squares, _shares(values, mask, factor, weights, squares.dtype)])
        self._probe.grad = rows if self._probe.grad is None else self._probe.grad + rows
        # Processes that share the batch reduce whatever they have.
        self._alone = None if wanted.rows else (self._probe.grad, changes(self._probe.grad))
        return weights

    def _ended(self) -> None:
        """Keep what the balanced losses have measured, apart from what later backwards leave in the probe.

        Nothing is kept if no branch has added to it, as in a backward to `inputs=` without the probe.
        """
        rows, self._probe.grad = self._probe.grad, None
        added, version = self._alone or (None, 0)
        if rows is not None and not (rows is added and changes(rows) == version):
            self._keep(rows)

    def _keep(self, rows: Tensor) -> None:
        self._kept = rows if self._kept is None else self._kept + rows

    def _looked(self, losses: Present, values: Tensor, mask: Tensor, factor: Tensor, opening: Opening) -> Sums | None:
        """The sums at weights of one, from a separate backward; `None` where the heads cannot run twice."""
        present = [loss for loss in losses if loss is not None]
        scaled = [factor.to(loss.dtype) for loss in present]
        try:
            with a_look(get_gradient_edge(loss).node for loss in present):
                (rows,) = torch.autograd.grad(present, [self._probe], scaled, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if refusal(error) is None:
                raise
            warn(UNSEEN)
            opening.abandon()
            return None
        if rows is None:
            return None
        shares = _shares(values, mask, factor, torch.ones_like(mask), rows.dtype)
        return opening.reduce(self._read(torch.cat([rows[:1], shares])))


def _shares(values: Tensor, mask: Tensor, factor: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """[4, T]: losses, factors, counts and scales."""
    factors = factor * mask
    return torch.stack([row.to(dtype) for row in (factors * values, factors, mask, factors * weights)])


class Fork(torch.autograd.Function):
    """Features → themselves, once per task."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, probe: Tensor) -> tuple[Tensor, ...]:
        """`probe` is [5, T]."""
        ctx.shape = probe.shape
        return tuple(features.view_as(features) for _ in range(probe.shape[1]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, and the squared norm of each in the probe's first row."""
        squares = torch.stack([_squares(gradient).sum() for gradient in gradients])
        rest = squares.new_zeros(ctx.shape[0] - 1, ctx.shape[1])
        return torch.stack(gradients).sum(0), torch.cat([squares.unsqueeze(0), rest])


def _squares(gradient: Tensor) -> Tensor:
    gradient = at_least_float32(gradient)
    return (gradient.abs() if gradient.is_complex() else gradient).square()


class WeightedSum(torch.autograd.Function):
    """`Σ w_i L_i` inside a compiled graph; losses, weights and mask are [T]."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, weights: Tensor, mask: Tensor, probe: Tensor) -> Tensor:
        """`probe` is [5, T]."""
        ctx.save_for_backward(losses, weights, mask)
        ctx.dtype = probe.dtype
        return (weights * losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """`c w_i`, and losses, factors and counts in the probe's other rows."""
        losses, weights, mask = ctx.saved_tensors
        (factor,) = gradients
        squares = torch.zeros_like(mask, dtype=ctx.dtype).unsqueeze(0)
        rows = torch.cat([squares, _shares(losses, mask, factor, weights, ctx.dtype)])
        return (factor * weights).to(losses.dtype), None, None, rows
