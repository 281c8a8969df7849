"""`W` as the user names it: a parameter, a module, an iterable of parameters, or a pattern of their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from .._errors import ArgumentError
from .._types import Shared
from ._graph import AutogradGraph
from ._shared import SharedLayer, SharedParameter, is_distributed


class NamedLayer(SharedLayer):
    """`W` as given by the user."""

    def locate(self, graph: AutogradGraph, tasks: Sequence[int]) -> Sequence[SharedParameter]:
        """All of it that is not frozen, in every graph."""
        return [part for part in self.parameters if part.used.requires_grad] or self.parameters


def resolve_shared(shared: Shared, model: nn.Module | None = None) -> tuple[SharedParameter, ...]:
    """The distinct trainable leaves that `shared` names.

    Raises:
        ArgumentError: There are none, or one of them cannot receive a gradient.
    """
    found: Sequence[Tensor]
    if isinstance(shared, str):
        found = _matching(shared, model)
    elif isinstance(shared, Tensor):
        found = [shared]
    elif isinstance(shared, nn.Module):
        found = [p for p in shared.parameters() if p.requires_grad]
        if not found:
            raise ArgumentError(
                f"shared: {type(shared).__name__} has no trainable parameter; "
                "name a layer that all tasks share and that is not frozen"
            )
    elif isinstance(shared, Iterable):
        found = list(shared)
    else:
        raise ArgumentError(
            f"shared must be a parameter, a module, an iterable of parameters or a name pattern, "
            f"got {type(shared).__name__}"
        )
    return _followed(_checked(found), shared if isinstance(shared, nn.Module) else model)


def _matching(pattern: str, model: nn.Module | None) -> Sequence[Tensor]:
    if model is None:
        raise ArgumentError(f"shared={pattern!r} is a name pattern: give model=, the module whose parameters it names")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    found = [p for name, p in model.named_parameters() if p.requires_grad and fnmatchcase(name, pattern)]
    if not found:
        raise ArgumentError(
            f"shared={pattern!r} matches no trainable parameter of {type(model).__name__}; "
            f"it has {', '.join(names[:20])}{' …' if len(names) > 20 else ''}"
        )
    return found


def _checked(found: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not found:
        raise ArgumentError("shared is empty: give at least one parameter, or omit it to detect the layer")
    for tensor in found:
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"shared must hold parameters, got {type(tensor).__name__}; use layer.weight")
        if not tensor.requires_grad:
            raise ArgumentError(
                f"shared holds a frozen tensor of shape {tuple(tensor.shape)}: "
                "choose a layer that trains, or call requires_grad_() on it"
            )
        if not tensor.is_leaf:
            raise ArgumentError(
                f"shared holds a computed tensor of shape {tuple(tensor.shape)}, not a parameter: "
                "give the parameter itself (for a parametrized layer, layer.parametrizations.weight.original0)"
            )
    return tuple({id(tensor): tensor for tensor in found}.values())


def _followed(found: Sequence[Tensor], model: nn.Module | None) -> tuple[SharedParameter, ...]:
    parts = {id(tensor): SharedParameter(tensor, tensor) for tensor in found}
    if model is not None:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in parts and is_distributed(parameter):
                    parts[id(parameter)].follow(module, name)
    return tuple(parts.values())
