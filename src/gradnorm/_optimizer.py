"""The optimizer of the loss weights: any of `torch.optim`, on one [T] tensor, with updates that can be taken back.

Whether an update counts (finite numbers, task present) is known on the device only, and asking would synchronize. So
the update is made, and entries for which it does not count are put back, in the optimizer's state as well.

The state is made at once and held as buffers, so that a saved model has the same tensors at every step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._errors import ArgumentError
from ._types import OptimizerFactory


class WeightOptimizer(nn.Module):
    """Wraps the optimizer that `factory` makes.

    Args:
        factory: Called as `factory([weights], lr=lr)`.
        weights: [T], updated in place.
        lr: Learning rate.

    Raises:
        ArgumentError: `factory` does not make an optimizer, or one whose state cannot be held in tensors.
    """

    def __init__(self, factory: OptimizerFactory, weights: Tensor, lr: float) -> None:
        super().__init__()
        try:
            made = factory([weights], lr=lr)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"optimizer must be callable as optimizer([weights], lr=lr), like torch.optim.Adam; got {factory!r}"
            ) from error
        if not isinstance(made, Optimizer):
            raise ArgumentError(
                f"optimizer must make a torch.optim.Optimizer, got {type(made).__name__}; pass the class itself"
            )
        self.optimizer = made
        self._weights = [weights]  # in a list, so that nn.Module does not take it for a buffer of its own
        for name, value in _fresh_state(made, weights).items():
            self.register_buffer(f"state_{name}", value)
        self.rebind(weights)

    @property
    def state(self) -> dict[str, Tensor]:
        """The optimizer's own tensors by name: [T], or [] for a count of steps."""
        return {name.removeprefix("state_"): buffer for name, buffer in self._buffers.items() if buffer is not None}

    def step(self, gradients: Tensor, finish: Callable[[Tensor], Tensor], accept: Tensor, before: Tensor) -> None:
        """`weights ← finish(optimizer's update)` where `accept`, and no change elsewhere or if a result is no weight.

        Args:
            gradients: [T].
            finish: What follows the update, [T] → [T].
            accept: bool, [T], or [] for all.
            before: A copy of the weights.
        """
        weights = self._weights[0]
        kept = [(value, value.clone()) for value in self.state.values()]
        # What an optimizer does with one entry may depend on the others, which must not meet numbers that are no such.
        weights.grad = torch.where(accept, gradients, 0.0) if accept.dim() else gradients
        self.optimizer.step()
        weights.grad = None
        after = finish(weights)
        accept = accept & (((after > 0) | ~accept).all() if accept.dim() else after.amin() > 0)
        torch.where(accept, after, before, out=weights)
        for value, old in kept:
            torch.where(accept if value.dim() else accept.any(), value, old, out=value)

    def get_extra_state(self) -> Tensor:
        """The learning rate, which a scheduler may have changed."""
        return torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the learning rate back."""
        self.optimizer.param_groups[0]["lr"] = float(state)

    def rebind(self, weights: Tensor) -> None:
        """Go on with another tensor in place of the weights, and the buffers as they are now, as after `Module.to`."""
        self.optimizer.state.clear()
        self.optimizer.param_groups[0]["params"][0] = weights
        self.optimizer.state[weights] = dict(self.state)
        self._weights[0] = weights
        for group in self.optimizer.param_groups:
            if "capturable" in group:  # keeps the count of steps beside the weights, so that nothing synchronizes
                group["capturable"] = weights.is_cuda


def _fresh_state(optimizer: Optimizer, weights: Tensor) -> dict[str, Tensor]:
    """The state as it is before the first step, which `torch.optim` makes in that step only."""
    before = weights.clone()
    weights.grad = torch.zeros_like(weights)
    try:
        optimizer.step()
    except (TypeError, RuntimeError) as error:
        raise ArgumentError(
            f"optimizer: {type(optimizer).__name__} cannot step on dense gradients without a closure; "
            "choose another, like torch.optim.Adam"
        ) from error
    weights.grad = None
    weights.copy_(before)
    state = optimizer.state[weights]
    for name, value in state.items():
        if not isinstance(value, Tensor | None):
            raise ArgumentError(
                f"optimizer: {type(optimizer).__name__} keeps {name!r} as {type(value).__name__}, not as a tensor, so "
                "it could not be saved with the weights; choose one of torch.optim"
            )
    if isinstance(steps := state.get("step"), Tensor):
        steps.zero_()
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
