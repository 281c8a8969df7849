"""The measurement without hooks, for networks that are one compiled graph: the gradient of a tensor is the tally.

Inside one compiled graph there are no tasks to be told apart. So the network forks its features by an identity that,
on the way back, also returns the squared norm of what came through each fork, as the gradient of `Probe.tensor`; the
weighted sum of the losses returns losses and factors the same way. Autograd adds all of it up over forks, features and
micro-batches; nothing here breaks a graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._numerics import at_least_float32
from .._types import Sums


class Probe:
    """Stands where a `Tally` does; `tensor` is the [4, T] leaf whose gradient holds norms², losses, factors, counts.

    Args:
        like: [T], for the number of tasks, the type and the device.
    """

    def __init__(self, like: Tensor) -> None:
        self.tensor = like.new_zeros(4, len(like)).requires_grad_()

    @property
    def sums(self) -> Sums | None:
        """What the backwards since the last `clear` measured; rows are norms, [T, 1]."""
        if self.tensor.grad is None:
            return None
        squares, losses, factors, counts = self.tensor.grad
        return Sums(squares.sqrt().unsqueeze(1), losses, factors, counts)

    def clear(self) -> None:
        """Forget everything, as after an optimizer step."""
        self.tensor.grad = None


class Fork(torch.autograd.Function):
    """Features → themselves, once a task."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, probe: Tensor) -> tuple[Tensor, ...]:
        """`probe` is [4, T]."""
        ctx.shape = probe.shape
        return tuple(features.view_as(features) for _ in range(probe.shape[1]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, and the squared norm of each in the probe's first row."""
        squares = torch.stack([at_least_float32(gradient).square().sum() for gradient in gradients])
        rest = squares.new_zeros(ctx.shape[0] - 1, ctx.shape[1])
        return torch.stack(gradients).sum(0), torch.cat([squares.unsqueeze(0), rest])


class Weigh(torch.autograd.Function):
    """`Σ w_i L_i`; losses, weights and mask are [T]."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, weights: Tensor, mask: Tensor, probe: Tensor) -> Tensor:
        """`probe` is [4, T]."""
        ctx.save_for_backward(losses, weights, mask)
        ctx.dtype = probe.dtype
        return (weights * losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """`c w_i`, and losses, factors and counts in the probe's other rows."""
        losses, weights, mask = ctx.saved_tensors
        (factor,) = gradients
        factors = factor * mask
        rows = [torch.zeros_like(mask), factors * losses, factors, mask]
        return (factor * weights).to(losses.dtype), None, None, torch.stack([row.to(ctx.dtype) for row in rows])
