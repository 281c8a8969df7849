"""`live`: the weights of a balancer while it trains, drawn again in one place of a notebook or a terminal.

It hooks the calls of the balancer, so that no training loop changes. Where output is piped it prints plain lines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch.utils.hooks import RemovableHandle

from ._advice import cells
from ._arguments import parse_count
from ._balancer import GradNorm

WIDEST = 30
"""Characters of the largest weight's bar."""


def live(balancer: GradNorm, every: int = 50) -> RemovableHandle:
    """Show the weights every `every` steps: a table in a notebook, bars in a terminal, or a plain line.

    Reading the weights synchronizes with the device. Not for a balancer within `torch.compile`.

    Args:
        balancer: The balancer, before it is trained.
        every: In steps of the balancer.

    Returns:
        A handle; its `remove()` ends the view.

    Raises:
        ArgumentError: `every` is not a positive integer.

    Examples:
        >>> import torch
        >>> trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
        >>> balancer = GradNorm(["near", "far"], shared=trunk.weight)
        >>> view = live(balancer, every=2)
        >>> for _ in range(3):  # doctest: +ELLIPSIS
        ...     balancer([head(trunk(torch.randn(16, 8))).square().mean() for head in heads]).backward()
        ...     balancer.step()
        step 0  near 1  far 1
        step 2  near ...  far ...
        >>> view.remove()
    """
    every = parse_count("every", every, low=1)
    show = _notebook(balancer) or (_Terminal() if sys.stdout.isatty() else _write_line)
    return balancer.register_forward_pre_hook(_View(every, show))


class _View:
    """The hook; a copy of the balancer is not shown."""

    def __init__(self, every: int, show: Callable[[GradNorm], Any] | None) -> None:
        self._every, self._show, self._shown = every, show, -1

    def __call__(self, balancer: GradNorm, _: object) -> None:
        steps = balancer._steps
        if self._show is not None and balancer.training and steps != self._shown and steps % self._every == 0:
            self._shown = steps
            self._show(balancer)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_show": None}


def _notebook(balancer: GradNorm) -> Callable[[GradNorm], Any] | None:
    """What updates a balancer's table in the cell that runs; `None` outside a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import display  # pyright: ignore[reportMissingImports]

    return display(balancer, display_id=True).update


def _write_line(balancer: GradNorm) -> None:
    weights = "".join(f"  {task} {cell}" for task, cell in zip(balancer.tasks, cells(balancer.weights), strict=True))
    print(f"step {balancer._steps:,}{weights}", flush=True)


class _Terminal:
    """Draws a line per task over those that it drew before."""

    _height = 0

    def __call__(self, balancer: GradNorm) -> None:
        width, weights = max(map(len, balancer.tasks)), balancer.weights.tolist()
        bars = ("█" * round(WIDEST * weight / max(weights)) for weight in weights)
        rows = zip(balancer.tasks, cells(balancer.weights), bars, strict=True)
        lines = [f"step {balancer._steps:,}", *(f"{task:<{width}}  {cell}  {bar}" for task, cell, bar in rows)]
        up = f"\x1b[{self._height}F" if self._height else ""
        self._height = len(lines)
        print(up + "\n".join(f"{line}\x1b[K" for line in lines), flush=True)
