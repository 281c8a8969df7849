"""Type aliases of the public signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

Losses: TypeAlias = Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor
"""By name, in the order of the tasks, or stacked into one [T] tensor; `None` is a task that this batch lacks."""

Shared: TypeAlias = nn.Parameter | Tensor | nn.Module | Iterable[Tensor] | str
"""The paper's `W`, in any of the accepted forms."""

OptimizerFactory: TypeAlias = Callable[..., Optimizer]
"""Called as `factory([weights], lr=lr)`; any class of `torch.optim`, or a partial of one."""

PerTask: TypeAlias = Mapping[str, float] | Sequence[float] | Tensor
"""One number per task, by name, in order, or as a [T] tensor."""
