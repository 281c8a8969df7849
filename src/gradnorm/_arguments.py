"""Argument validation: every user input is checked here, once, before anything changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from ._errors import ArgumentError, GraphError
from ._torch_private import is_transformed
from ._types import Losses, PerTask

FLOAT32 = torch.finfo(torch.float32)
"""Settings are kept in float32."""


def parse_tasks(tasks: int | Iterable[str]) -> tuple[str, ...]:
    """Task names; a number of tasks becomes `("0", "1", …)`."""
    if isinstance(tasks, bool) or not isinstance(tasks, Integral | Iterable) or isinstance(tasks, str):
        raise ArgumentError(f'tasks must be names or their number, got {tasks!r}; for example ["depth", "normals"]')
    names = tuple(str(i) for i in range(int(tasks))) if isinstance(tasks, Integral) else tuple(tasks)
    if len(names) < 2:
        raise ArgumentError(f"tasks: GradNorm balances two or more tasks, got {len(names)}; one loss needs no balancer")
    for name in names:
        if not isinstance(name, str):
            raise ArgumentError(f"tasks must hold names, got {name!r} of type {type(name).__name__}; use strings")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ArgumentError(f"tasks holds {twice[0]!r} more than once; give each task a name of its own")
    return names


def parse_number(name: str, value: float, *, low: float, open_low: bool = False, high: float = math.inf) -> float:
    """`value` as a finite float within bounds; `low` itself is allowed unless `open_low`, `high` never is."""
    numeric = isinstance(value, Real) and not isinstance(value, bool)  # NumPy's numbers are, too
    if numeric and open_low and low <= value < low + FLOAT32.tiny:
        value = low  # in float32
    if (
        not numeric
        or not -FLOAT32.max <= value <= FLOAT32.max
        or value < low
        or value >= high
        or (open_low and value == low)
    ):
        bound = f"above {low:g}" if open_low else f"at least {low:g}"
        limit = "" if high == math.inf else f" and below {high:g}"
        raise ArgumentError(f"{name} must be a finite number {bound}{limit}, got {value!r}")
    return float(value)


def parse_count(name: str, value: int, *, low: int) -> int:
    """`value` as an int of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ArgumentError(f"{name} must be an integer of at least {low}, got {value!r}")
    return int(value)


def parse_per_task(name: str, values: PerTask, tasks: Sequence[str]) -> list[float]:
    """One positive number per task, in the tasks' order."""
    ordered: list[float]
    if isinstance(values, Tensor) and values.dim() == 1:
        values = [float(value) for value in values]
    if isinstance(values, Mapping):
        _check_names(name, values, tasks)
        missing = [task for task in tasks if task not in values]
        if missing:
            raise ArgumentError(f"{name} lacks {missing[0]!r}; give one number for each of {', '.join(tasks)}")
        ordered = [values[task] for task in tasks]
    elif isinstance(values, str | Tensor) or not isinstance(values, Iterable):
        raise ArgumentError(f"{name} must be a mapping by task or one number per task, got {values!r}")
    else:
        ordered = list(values)
        if len(ordered) != len(tasks):
            raise ArgumentError(f"{name} holds {len(ordered)} numbers for {len(tasks)} tasks; give one per task")
    return [
        parse_number(f"{name}[{task!r}]", value, low=0.0, open_low=True)
        for task, value in zip(tasks, ordered, strict=True)
    ]


def parse_losses(losses: Losses, tasks: Sequence[str], *, empty: bool = False) -> list[Tensor | None]:
    """One 0-d loss per task, in the tasks' order; `None` for absent tasks, which may be all of them only if `empty`.

    Raises:
        ArgumentError: Unknown names, a wrong number, no loss at all, or something that is no scalar floating tensor.
    """
    if isinstance(losses, tuple) and not set(tasks).isdisjoint(getattr(losses, "_fields", ())):
        losses = losses._asdict()  # pyright: ignore[reportAttributeAccessIssue] - a named tuple, in an order of its own
    if isinstance(losses, Mapping):
        _check_names("losses", losses, tasks)
        ordered = [losses.get(task) for task in tasks]
    else:
        ordered = _in_order(losses, tasks)
    parsed = [None if loss is None else _scalar(task, loss) for task, loss in zip(tasks, ordered, strict=True)]
    present = {task: loss for task, loss in zip(tasks, parsed, strict=True) if loss is not None}
    if not present and not empty:
        raise ArgumentError("losses holds no loss; skip the whole step for a batch without any task")
    if len({loss.device for loss in present.values()}) > 1:
        where = ", ".join(f"{task!r} on {loss.device}" for task, loss in present.items())
        raise ArgumentError(f"losses are on different devices: {where}; move them to one with .to(device)")
    return parsed


def check_kind(argument: str, given: object, *kinds: type) -> None:
    """Raise unless it is an instance of one of these."""
    if not isinstance(given, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ArgumentError(f"{argument} must be a {wanted}, got {type(given).__name__}")


def check_graphs(losses: Sequence[Tensor | None], tasks: Sequence[str]) -> None:
    """Raise unless every present loss can run an ordinary backward."""
    for task, loss in zip(tasks, losses, strict=True):
        if loss is None:
            continue
        refuse_transforms(loss)
        if not loss.requires_grad:
            raise GraphError(
                f"the loss of task {task!r} has no graph: it was detached, computed under no_grad, or is a constant; "
                "pass None for a task that this batch lacks"
            )


def refuse_transforms(tensor: Tensor) -> None:
    """Raise inside any transform of `torch.func`: its graphs are separate and never trigger our hooks."""
    if is_transformed(tensor):
        raise GraphError(
            "a loss inside torch.func.grad, vmap or another torch.func transform cannot be measured: use "
            "functional_call and backward() there, or balancer.eval() for the weighted sum alone"
        )


def _check_names(argument: str, given: Mapping[str, object], tasks: Sequence[str]) -> None:
    unknown = [name for name in given if name not in tasks]
    if unknown:
        raise ArgumentError(f"{argument} holds {unknown[0]!r}, which is no task; the tasks are {', '.join(tasks)}")


def _in_order(losses: Sequence[Tensor | None] | Tensor, tasks: Sequence[str]) -> Sequence[Tensor | None]:
    if isinstance(losses, Tensor):
        if losses.dim() != 1:
            raise ArgumentError(
                f"losses must be stacked into one [T] tensor, got shape {tuple(losses.shape)}; use torch.stack"
            )
        _check_floating("losses", losses)
        ordered = list(losses.unbind())
    elif isinstance(losses, Sequence) and not isinstance(losses, str):
        ordered = list(losses)
    else:
        raise ArgumentError(
            f"losses must be a mapping by task, a sequence or a [T] tensor, got {type(losses).__name__}"
        )
    if len(ordered) != len(tasks):
        raise ArgumentError(
            f"losses holds {len(ordered)} for {len(tasks)} tasks ({', '.join(tasks)}); "
            "put None where a task is missing from the batch"
        )
    return ordered


def _scalar(task: str, loss: Tensor) -> Tensor:
    name = f"the loss of task {task!r}"
    if not isinstance(loss, Tensor):
        raise ArgumentError(f"{name} must be a tensor, got {loss!r} of type {type(loss).__name__}")
    if loss.numel() != 1:
        raise ArgumentError(f"{name} must be a scalar, got shape {tuple(loss.shape)}; reduce it, as with .mean()")
    _check_floating(name, loss)
    return loss if loss.dim() == 0 else loss.reshape(())


def _check_floating(name: str, tensor: Tensor) -> None:
    if not torch.is_floating_point(tensor):
        raise ArgumentError(f"{name} must be of a floating type, got {tensor.dtype}; convert it with .float()")
