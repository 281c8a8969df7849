"""`live`: the weights of a balancer while it trains, drawn again in one place of a notebook, or line by line.

It hooks the calls of the balancer, so that no training loop changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.utils.hooks import RemovableHandle

from ._advice import cells
from ._arguments import check_kind, parse_count
from ._balancer import GradNorm

BARS = "▁▂▃▄▅▆▇█"
"""Beside a weight in a terminal, by its part of the largest."""


def live(balancer: GradNorm, every: int = 50) -> RemovableHandle:
    """Show the weights after the first step and every `every` steps: a table in a notebook, elsewhere a line.

    They are shown when the next loss is balanced, of several processes by the first. Reading the weights synchronizes
    with the device. Not for a balancer within `torch.compile`.

    Args:
        balancer: The balancer, before it is trained.
        every: In steps of the balancer.

    Returns:
        A handle; its `remove()` ends the view.

    Raises:
        ArgumentError: `balancer` is no `GradNorm`, or `every` not a positive integer.

    Examples:
        >>> import torch
        >>> trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
        >>> balancer = GradNorm(["near", "far"], shared=trunk.weight)
        >>> view = live(balancer, every=2)
        >>> for _ in range(3):  # doctest: +ELLIPSIS
        ...     balancer([head(trunk(torch.randn(16, 8))).square().mean() for head in heads]).backward()
        ...     balancer.step()
        step 1  near ...  far ...
        step 2  near ...  far ...
        >>> view.remove()
    """
    check_kind("balancer", balancer, GradNorm)
    every = parse_count("every", every, low=1)
    show = _notebook(balancer) or _write_line
    return balancer.register_forward_pre_hook(_View(every, show))


class _View:
    """The hook; a copy of the balancer is not shown."""

    def __init__(self, every: int, show: Callable[[GradNorm], Any] | None) -> None:
        self._every, self._show, self._shown = every, show, -1

    def __call__(self, balancer: GradNorm, _: object) -> None:
        steps = balancer._steps
        is_due = steps == 1 or (steps > 0 and steps % self._every == 0)
        if self._show is not None and balancer.training and is_due and steps != self._shown and _is_first():
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


def _is_first() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _write_line(balancer: GradNorm) -> None:
    weights = balancer.weights.tolist()
    has_bars = sys.stdout.isatty() and _can_show(BARS)
    bars = [f" {_bar(weight / max(weights))}" if has_bars else "" for weight in weights]
    shown = zip(balancer.tasks, cells(balancer.weights), bars, strict=True)
    print(f"step {balancer._steps:,}{''.join(f'  {task} {cell}{bar}' for task, cell, bar in shown)}", flush=True)


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _bar(part: float) -> str:
    return BARS[round((len(BARS) - 1) * part)]
