"""`monitor`: the tasks' gradients measured during training, and nothing balanced.

A monitor is a balancer whose update rule keeps all weights at one. So wherever a balancer works a monitor does, and
what it measures is what a balancer would act on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from . import _html
from . import functional as rule
from ._balancer import GradNorm
from ._types import Shared
from ._updates import Measured, Update
from .capture import At

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Monitor(GradNorm):
    """What `monitor` returns: a `GradNorm` that measures and whose loss is the plain sum.

    `attach`, `step`, `report`, `history` and everything else are those of `GradNorm`.
    """

    def extra_repr(self) -> str:
        """When and where it measures, `W` and the tasks, for `print`."""
        return "\n".join([f"every={self.every}, at={self.at!r}", f"W: {self._described}", *self.tasks])

    def _repr_html_(self) -> str:
        title = f"Monitor of {self._described}; {self._steps:,} steps"
        return _html.document(title, [_html.table({"task": self.tasks, **self._measured("loss", "norm")})])

    def log_dict(self, prefix: str = "gradnorm/") -> dict[str, float]:
        """The last measured step as floats for a logger; synchronizes with the device.

        Holds `loss/…`, `norm/…` and `share/…`, the norm over the sum of all norms, for each task that was present, and
        `cosine/…/…` for each pair of them; what is NaN is left out.
        """
        logged = super().log_dict("")
        norms = {name.removeprefix("norm/"): value for name, value in logged.items() if name.startswith("norm/")}
        if 0 < (total := sum(norms.values())) < math.inf:
            logged |= {f"share/{task}": norm / total for task, norm in norms.items()}
        kinds = ("loss/", "norm/", "share/", "cosine/")
        return {f"{prefix}{name}": logged[name] for kind in kinds for name in logged if name.startswith(kind)}


class Constant(Update):
    """No update: weights stay as they are."""

    is_constant = True

    def _bind(self, weights: Tensor) -> None:
        pass

    def step(
        self, weights: Tensor, measured: Measured, alpha: float, priorities: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rates = rule.inverse_training_rates(measured.loss_ratios, measured.is_complete)
        return torch.full_like(weights, torch.nan), rates


def monitor(
    tasks: int | Iterable[str],
    *,
    shared: Shared | None = None,
    model: nn.Module | None = None,
    every: int = 10,
    at: At = "layer",
    reduce: Literal["gradients"] | None = "gradients",
    process_group: ProcessGroup | None = None,
    history: int = 2000,
) -> Monitor:
    """Measure each task's gradient at `W` during training, and balance nothing.

    `monitor(losses)` is the plain sum of the losses; its backward measures in every `every`-th step. To watch a
    weighted sum, pass weighted losses. In Lightning and the Hugging Face `Trainer` it takes a balancer's place.

    Args:
        tasks: Task names, or the number of tasks.
        shared: `W`, as for `GradNorm`. Default: the last shared layer.
        model: The network, for the names of its parameters.
        every: Measure every `every` steps.
        at: Where to measure, as for `GradNorm`.
        reduce: As for `GradNorm`.
        process_group: As for `GradNorm`.
        history: Maximum number of points that `history` keeps.

    Raises:
        ArgumentError: For each argument that cannot be used.

    Examples:
        >>> import torch
        >>> trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
        >>> optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()])
        >>> watch = monitor(["near", "far"])
        >>> handle = watch.attach(optimizer)
        >>> for _ in range(11):
        ...     features = trunk(torch.randn(16, 8)).relu()
        ...     loss = watch({"near": heads[0](features).square().mean(), "far": heads[1](features).square().mean()})
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> figures = watch.log_dict()
        >>> list(figures)[2:6]
        ['gradnorm/norm/near', 'gradnorm/norm/far', 'gradnorm/share/near', 'gradnorm/share/far']
        >>> round(figures["gradnorm/share/near"] + figures["gradnorm/share/far"], 4)
        1.0
    """
    return Monitor(
        tasks,
        shared=shared,
        model=model,
        alpha=0.0,
        update=Constant(),
        initial_weights=None,
        every=every,
        at=at,
        reduce=reduce,
        process_group=process_group,
        cosines_every=1,
        history=history,
    )
