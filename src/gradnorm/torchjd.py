"""GradNorm as a `Scalarizer` of TorchJD: a tensor of values of any shape in, one loss out.

A scalarizer of TorchJD has no step of its own in a training loop; GradNorm's weights are updated after each optimizer
step, by `attach` or `step()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ._arguments import parse_count
from ._balancer import GradNorm
from ._errors import ArgumentError, missing_extra

try:
    from torchjd import Stateful
    from torchjd.scalarization import Scalarizer
except ModuleNotFoundError as error:
    raise missing_extra("torchjd", "torchjd") from error


class GradNormScalarizer(Scalarizer, Stateful):
    """A `GradNorm` behind TorchJD's `Scalarizer`.

    In training the values must come out of a graph with a shared layer, as the losses of a `GradNorm` must; in
    `eval()` any values will do.

    Args:
        shape: Shape of the values, of which each is one task's; a number n is the shape `(n,)`.
        kwargs: As `GradNorm` takes them.

    Attributes:
        balancer: The `GradNorm`, whose tasks are the values in row-major order; `None` for a single value, which there
            is nothing to balance with.

    Raises:
        ArgumentError: `shape` is no shape, or an argument of `GradNorm` cannot be used.

    Examples:
        >>> import torch
        >>> trunk, head = torch.nn.Linear(8, 4), torch.nn.Linear(4, 6)
        >>> optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()])
        >>> scalarizer = GradNormScalarizer((2, 3), shared=trunk.weight)
        >>> handle = scalarizer.attach(optimizer)
        >>> for _ in range(3):
        ...     values = head(trunk(torch.randn(16, 8)).relu()).square().mean(0).reshape(2, 3)
        ...     optimizer.zero_grad()
        ...     scalarizer(values).backward()
        ...     optimizer.step()
        >>> scalarizer.weights.shape, round(scalarizer.weights.sum().item(), 4)
        (torch.Size([2, 3]), 6.0)
    """

    def __init__(self, shape: int | Iterable[int], **kwargs: Any) -> None:
        super().__init__()
        sizes = shape if isinstance(shape, Iterable) else (shape,)
        self.shape = tuple(parse_count("shape", size, low=1) for size in sizes)
        count = math.prod(self.shape)
        self.balancer = GradNorm(count, **kwargs) if count > 1 else None

    @property
    def weights(self) -> Tensor | None:
        """The weights, in the shape of the values; `None` for a single value."""
        return None if self.balancer is None else self.balancer.weights.reshape(self.shape)

    def forward(self, values: Tensor, /) -> Tensor:
        """`Σ w_i L_i`, as `GradNorm.forward`.

        Raises:
            ArgumentError: Values of another shape.
            GraphError: In training, values without a graph to a shared layer.
        """
        if tuple(values.shape) != self.shape:
            raise ArgumentError(f"values must have shape {self.shape}, got {tuple(values.shape)}")
        return values.sum() if self.balancer is None else self.balancer(values.flatten())

    def attach(self, optimizer: Optimizer) -> RemovableHandle | None:
        """As `GradNorm.attach`; `None` for a single value."""
        return None if self.balancer is None else self.balancer.attach(optimizer)

    def step(self) -> None:
        """As `GradNorm.step`."""
        if self.balancer is not None:
            self.balancer.step()

    def reset(self) -> None:
        """Back to the initial state, as `GradNorm.reset_parameters`."""
        if self.balancer is not None:
            self.balancer.reset_parameters()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape})"
