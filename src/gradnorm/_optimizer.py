"""The optimiser of the loss weights: any of `torch.optim`, on one [T] tensor, with updates that can be taken back.

Whether an update counts (finite numbers, task present) is known on the device only, and asking would make the host
wait. So the update is made, and entries for which it does not count are put back, in the optimiser's state as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._errors import ArgumentError
from ._types import OptimizerFactory, State


class WeightOptimizer:
    """Wraps the optimiser that `factory` makes.

    Args:
        factory: Called as `factory([weights], lr=lr)`.
        weights: [T], updated in place.
        lr: Learning rate.

    Raises:
        ArgumentError: `factory` does not make an optimizer.
    """

    def __init__(self, factory: OptimizerFactory, weights: Tensor, lr: float) -> None:
        try:
            made = factory([weights], lr=lr)
        except TypeError as error:
            raise ArgumentError(
                f"optimizer must be callable as optimizer([weights], lr=lr), like torch.optim.Adam; got {factory!r}"
            ) from error
        if not isinstance(made, Optimizer):
            raise ArgumentError(
                f"optimizer must make a torch.optim.Optimizer, got {type(made).__name__}; pass the class itself"
            )
        self.optimizer = made
        self._weights = weights
        self._stay_on_device()

    def step(self, gradients: Tensor, finish: Callable[[Tensor], Tensor], accept: Tensor) -> None:
        """`weights ← finish(optimizer's update)` where `accept`, and no change elsewhere or if a result is not finite.

        Args:
            gradients: [T].
            finish: What follows the update, [T] → [T].
            accept: bool, [T] or one for all.
        """
        before = self._weights.clone()
        state = {name: value.clone() for name, value in self._tensors().items()}
        # Numbers that are not finite must not reach the state: a product with them cannot be put back.
        self._weights.grad = torch.where(accept, gradients, 0.0)
        self.optimizer.step()
        self._weights.grad = None
        after = finish(self._weights)
        accept = accept & torch.isfinite(after.sum())
        self._weights.copy_(torch.where(accept, after, before))
        for name, value in self._tensors().items():
            keep = accept.any() if value.dim() == 0 else accept
            value.copy_(torch.where(keep, value, state.get(name, torch.zeros_like(value))))

    def rebind(self, weights: Tensor) -> None:
        """Go on with another tensor in place of the weights, as after `Module.to`."""
        state = self.optimizer.state.pop(self._weights, {})
        self.optimizer.param_groups[0]["params"][0] = weights
        moved = {name: _like(value, weights) for name, value in state.items()}
        if moved:
            self.optimizer.state[weights] = moved
        self._weights = weights
        self._stay_on_device()

    def state_dict(self) -> State:
        """Of the wrapped optimizer."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Into the wrapped optimizer."""
        self.optimizer.load_state_dict(state)
        self._stay_on_device()

    def _tensors(self) -> dict[str, Tensor]:
        state = self.optimizer.state.get(self._weights, {})
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}

    def _stay_on_device(self) -> None:
        """Keep the step counter beside the weights: taking back a step must not wait for the device."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = self._weights.is_cuda


def _like(value: object, weights: Tensor) -> object:
    if not isinstance(value, Tensor):
        return value
    wide = value.is_floating_point() and value.shape == weights.shape
    return value.to(weights.device, weights.dtype if wide else value.dtype)
