"""What adapters of PyTorch share: the losses of a vector, `W`, and what an implementation may lack.

A loss has a given value and a given gradient at `W`: `losses[i] + gradients[i] · (W − W₀) + ½ curvature ‖W − W₀‖²`,
where `W₀` is the present `W`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def batch_losses(W: Sequence[Tensor], batch: dict[str, Any], curvature: float = 0.0) -> list[Tensor | None]:
    """One scalar per task, `None` for a task that is absent."""
    moved = [part - part.detach() for part in W]
    bowl = sum((part.square().sum() for part in moved), torch.zeros(()))

    def loss(value: float, gradients: Sequence[Sequence[float]]) -> Tensor:
        slopes = [torch.tensor(g, dtype=m.dtype) for g, m in zip(gradients, moved, strict=True)]
        slope = torch.stack([(g * m).sum() for g, m in zip(slopes, moved, strict=True)]).sum()
        return value + slope + 0.5 * curvature * bowl

    pairs = zip(batch["losses"], batch["gradients"], strict=True)
    return [None if value is None else loss(value, gradients) for value, gradients in pairs]


def layer(batch: dict[str, Any]) -> list[torch.nn.Parameter]:
    """`W` for the gradients of a vector's first batch: zeros, one parameter per part."""
    return [torch.nn.Parameter(torch.zeros(len(part), dtype=torch.float64)) for part in batch["gradients"][0]]


def stacked(losses: Sequence[Tensor | None]) -> Tensor:
    """[T], where no task is absent."""
    return torch.stack([loss for loss in losses if loss is not None])


def network_gradient(W: Sequence[Tensor]) -> list[list[float]]:
    """What is in `.grad`."""
    return [part.grad.tolist() for part in W if part.grad is not None]


def zero_gradient(W: Sequence[Tensor]) -> None:
    """Zeros in `.grad`."""
    for part in W:
        part.grad = torch.zeros_like(part)


def refuse(settings: dict[str, Any], steps: Sequence[Any], without: Sequence[str]) -> None:
    """Raise `NotImplementedError` if the vector asks for one of the things that an implementation is without."""
    batches = [batch for step in steps for batch in step]
    asked = {
        "a closed form": settings["update"] == "closed-form",
        "Adam": settings.get("optimizer") == "adam",
        "a lower bound": settings.get("min_weight", 1e-4) > 1e-4,
        "priorities": settings["priorities"] is not None,
        "missing tasks": any(None in batch["losses"] for batch in batches),
        "accumulation": len(batches) > len(steps),
        "a W of several parameters": len(layer(batches[0])) > 1,
    }
    if lacking := [what for what in without if asked[what]]:
        raise NotImplementedError(f"no {lacking[0].removeprefix('a ')}")


@contextmanager
def double_precision() -> Iterator[None]:
    """New tensors are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def load(source: str | None, what: str) -> Any:
    """The file at `source` as a module."""
    if source is None:
        raise SystemExit(f"--source must be the path of {what}")
    spec = importlib.util.spec_from_file_location("implementation", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
