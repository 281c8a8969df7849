"""The optimizer of the loss weights: any of `torch.optim`, on one [T] tensor, with updates that can be undone.

Whether an update counts (finite numbers, task present) is known on the device only, and reading it would synchronize.
So the update is made, and entries for which it does not count are restored, in the optimizer's state as well.

The state is created in advance and registered as buffers, so that a saved model has the same tensors at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._errors import ArgumentError
from ._state import StatefulModule
from ._torch_private import changes, expect_no_capture
from ._types import OptimizerFactory

OPTIONS = ("lr", "betas", "momentum", "weight_decay")
"""The options of an optimizer that schedulers may change."""


class WeightOptimizer(StatefulModule):
    """Wraps the optimizer that `factory` creates.

    Args:
        factory: Called as `factory([weights], lr=lr)`.
        weights: [T], updated in place.
        lr: Learning rate.

    Raises:
        ArgumentError: `factory` does not create an optimizer, or one whose state is not in tensors.
    """

    options: Tensor

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
        self.register_buffer("options", self._options())
        self._note()
        self.rebind(weights)

    @property
    def state(self) -> dict[str, Tensor]:
        """The optimizer's own tensors by name: [T], or [] for a step counter."""
        return {name.removeprefix("state_"): value for name, value in self._held() if name.startswith("state_")}

    def step(self, gradients: Tensor, finish: Callable[[Tensor], Tensor], accept: Tensor, before: Tensor) -> None:
        """`weights ← finish(optimizer's update)` where `accept`; no change elsewhere, or if a result is no weight.

        Args:
            gradients: [T].
            finish: Applied after the update, [T] → [T].
            accept: bool, [T], or [] for all.
            before: A copy of the weights.
        """
        weights = self._weights[0]
        kept = [(value, value.clone()) for value in self.state.values()]
        # An optimizer's update of one entry may depend on the others, so NaN must not enter.
        weights.grad = torch.where(accept, gradients, 0.0) if accept.dim() else gradients
        expect_no_capture(self.optimizer)  # a copy of an optimizer forgets it
        self.optimizer.step()
        weights.grad = None
        after = finish(weights)
        accept = accept & (((after > 0) | ~accept).all() if accept.dim() else after.amin() > 0)
        torch.where(accept, after, before, out=weights)
        for value, old in kept:
            torch.where(accept if value.dim() else accept.any(), value, old, out=value)

    def rebind(self, weights: Tensor) -> None:
        """Continue with another tensor in place of the weights, and with the current buffers, as after `Module.to`."""
        self.optimizer.state.clear()
        self.optimizer.param_groups[0]["params"][0] = weights
        self.optimizer.state[weights] = dict(self.state)
        self._weights[0] = weights
        for group in self.optimizer.param_groups:
            if "capturable" in group:  # keeps the step counter on the weights' device, so that nothing synchronizes
                group["capturable"] = weights.is_cuda

    def _options(self) -> Tensor:
        """[N, 3], each number as an exact sum of three in float32, so that the whole state has one dtype."""
        group = self.optimizer.param_groups[0]
        numbers = [number for name in OPTIONS if name in group for number in _as_tuple(group[name])]
        rest = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        parts = []
        for _ in range(3):
            parts.append(rest.to(torch.float32))
            rest = rest - parts[-1]
        return torch.stack(parts, 1)

    def _note(self) -> None:
        """Write the options where they are saved; what is put there from now on is somebody else's."""
        noted = self._value("options")
        noted.copy_(self._options())
        self._noted = noted, changes(noted)

    def _read(self) -> None:
        self.rebind(self._weights[0])
        noted, version = self._noted
        if self._value("options") is noted and changes(noted) == version:
            return  # a scheduler may have changed the optimizer's own since
        group = self.optimizer.param_groups[0]
        numbers = iter(self._value("options").to("cpu", torch.float64).sum(1).tolist())
        for name in OPTIONS:
            if name in group:
                taken = tuple(next(numbers) for _ in _as_tuple(group[name]))
                group[name] = taken if isinstance(group[name], tuple | list) else taken[0]
        self._note()

    def _moved(self) -> None:
        self.rebind(self._weights[0])
        self._note()

    def __getstate__(self) -> dict[str, Any]:
        """A copy reads its options from the buffer."""
        self._note()
        return self.__dict__

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._note()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if (lr := state_dict.pop(f"{prefix}_extra_state", None)) is not None:  # as it was saved before 0.2
            self.optimizer.param_groups[0]["lr"] = float(lr)
            state_dict[f"{prefix}options"] = self._options()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _as_tuple(option: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(option) if isinstance(option, tuple | list) else (option,)


def _fresh_state(optimizer: Optimizer, weights: Tensor) -> dict[str, Tensor]:
    """The state before the first step, which `torch.optim` creates in that step only."""
    before = weights.clone()
    weights.grad = torch.zeros_like(weights.zero_())  # at zero, where weight decay leaves nothing in the state
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
    if isinstance(product := state.get("mu_product"), Tensor):  # NAdam's, of factors
        product.fill_(1.0)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
