"""`W`, the parameters at which gradients are compared, and the gradients there as rows of numbers.

It is given by the user (`_named.py`), or detected in the graph (`_detected.py`).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._numerics import at_least_float32
from ._graph import AutogradGraph


@dataclass
class SharedParameter:
    """A part of `W`: the parameter, and the tensor that stands for it in the graph of the last forward.

    They are one and the same, except where FSDP2 shards the parameter and gathers it for each forward.
    """

    parameter: Tensor
    used: Tensor

    def follow(self, module: nn.Module, name: str) -> None:
        """Record in each forward of `module` the tensor that it uses as its parameter `name`."""
        # Before the forward: FSDP2 has gathered the parameter by then, and may have dropped it after.
        module.register_forward_pre_hook(functools.partial(self._note, name))

    def _note(self, name: str, module: nn.Module, _: object) -> None:
        self.used = getattr(module, name)


class SharedLayer(ABC):
    """`W`.

    Args:
        names: Of the model's parameters, as far as they are known.

    Attributes:
        parameters: All of it. Gradients at `W` are laid out in this order, to which a detected layer only appends.
        is_confirmed: Whether it is known for sure.
        growths: How many later graphs have shown more of it, in a row.
    """

    is_confirmed = True
    growths = 0

    def __init__(self, parameters: Sequence[SharedParameter], names: Mapping[nn.Parameter, str]) -> None:
        self.parameters = tuple(parameters)
        self._all_names: dict[Tensor, str] = {**names}

    @abstractmethod
    def locate(self, graph: AutogradGraph, tasks: Sequence[int]) -> Sequence[SharedParameter]:
        """The parameters of `W` at which to measure in this graph, whose i-th loss is that of `tasks[i]`.

        None at all means that nothing can be measured yet.

        Raises:
            GraphError: There is no such parameter.
        """

    def laid_out(
        self, found: Sequence[Tensor | None], shared: Sequence[SharedParameter], batch: Sequence[int] = ()
    ) -> Tensor:
        """[*, N], the gradients at the parts that a graph shows, flat, in the order of all of `W`.

        Args:
            found: One for each of `shared`, `None` for zero, perhaps with dimensions `batch` before its own.
            shared: The parts that the graph shows.
            batch: Sizes.
        """
        by_part = dict(zip(map(id, shared), found, strict=True))
        return flat([by_part.get(id(part)) for part in self.parameters], [part.used for part in self.parameters], batch)

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters themselves."""
        return [shared.parameter for shared in self.parameters]

    @property
    def names(self) -> list[str]:
        """The parameters' names; their shapes where these are not known."""
        return [self._all_names.get(each, f"a parameter {tuple(each.shape)}") for each in self.tensors]

    @property
    def described(self) -> list[str]:
        """The parameters' names and shapes."""
        return self._describe(self.tensors)

    @property
    def called(self) -> str:
        """`W` in messages."""
        return "W"

    def _describe(self, tensors: Sequence[Tensor]) -> list[str]:
        return [f"{self._all_names.get(each, 'a parameter')} {tuple(each.shape)}" for each in tensors]


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor: one part here, the others on other processes."""
    return hasattr(tensor, "full_tensor")


def whole(gradient: Tensor) -> Tensor:
    """The full dense gradient: under tensor parallelism this process may hold a part, or one term of a sum."""
    if is_distributed(gradient):
        return gradient.full_tensor()  # pyright: ignore[reportAttributeAccessIssue]
    return dense(gradient)


def dense(gradient: Tensor) -> Tensor:
    """The entries of a gradient as a dense tensor; those of a nested one in a row."""
    gradient = gradient.values() if gradient.is_nested else gradient
    return gradient.to_dense() if gradient.is_sparse else gradient


def sample(tensor: Tensor) -> Tensor:
    """[at most 1,000] entries of a parameter on this process, evenly spaced: they show whether it has changed."""
    here = dense(tensor.detach())
    here = here.to_local() if is_distributed(here) else here  # pyright: ignore[reportAttributeAccessIssue]
    return here.reshape(-1)[:: here.numel() // 1000 + 1].clone()


def flat(gradients: Sequence[Tensor | None], like: Sequence[Tensor], batch: Sequence[int] = ()) -> Tensor:
    """[N], one task's gradients at `W` in a row, in float32 at least; `None` is a gradient of zero.

    A complex number is two real ones.

    Args:
        gradients: One for each of `like`, perhaps with dimensions `batch` before its own, which stay.
        like: The tensors of `W`.
        batch: Sizes.
    """
    rows = [
        at_least_float32(torch.zeros(*batch, entry_count(tensor), dtype=tensor.dtype.to_real(), device=tensor.device))
        if gradient is None
        else _numbers(gradient, batch)
        for tensor, gradient in zip(like, gradients, strict=True)
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows, -1)


def entry_count(tensor: Tensor) -> int:
    """How many real numbers its gradient is."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def _numbers(gradient: Tensor, batch: Sequence[int]) -> Tensor:
    gradient = whole(gradient)
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient.resolve_conj())
    return at_least_float32(gradient.reshape(*batch, -1))
