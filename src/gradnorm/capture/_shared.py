"""`W`, the weights at which gradients are compared: as the user points at them, or found in the graph.

The paper takes the last shared layer. In a graph that is, of the parameters with two or more dimensions that every
loss reaches, the one that the tasks' common part of the forward used last.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from .._errors import ArgumentError, GraphError
from .._types import Shared
from ._graph import Graph


@dataclass
class Held:
    """A part of `W`: the parameter, and the tensor that stands for it in the graph of the last forward.

    They are one and the same, except where FSDP2 shards the parameter and gathers it for each forward.
    """

    parameter: Tensor
    used: Tensor

    def follow(self, module: nn.Module, name: str) -> None:
        """Note in each forward of `module` what it uses as its parameter `name`."""
        # Before the forward: FSDP2 has gathered the parameter by then, and may have dropped it after.
        module.register_forward_pre_hook(functools.partial(self._note, name))

    def _note(self, name: str, module: nn.Module, _: object) -> None:
        self.used = getattr(module, name)


def resolve_shared(shared: Shared, model: nn.Module | None = None) -> tuple[Held, ...]:
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
    return _held(_checked(found), shared if isinstance(shared, nn.Module) else model)


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
        raise ArgumentError("shared is empty: give at least one parameter, or leave it out to have it found")
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


def _held(found: Sequence[Tensor], model: nn.Module | None) -> tuple[Held, ...]:
    held = {id(tensor): Held(tensor, tensor) for tensor in found}
    if model is not None:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in held and is_distributed(parameter):
                    held[id(parameter)].follow(module, name)
    return tuple(held.values())


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor: one part here, the others on other processes."""
    return hasattr(tensor, "full_tensor")


def whole(gradient: Tensor) -> Tensor:
    """Dense, and all of it: under tensor parallelism this process may hold a part, or one term of a sum."""
    if is_distributed(gradient):
        return gradient.full_tensor()  # pyright: ignore[reportAttributeAccessIssue]
    return gradient.to_dense() if gradient.is_sparse else gradient


def last_shared(graph: Graph, tasks: int) -> tuple[Held, ...]:
    """The last shared layer's weight in `graph`, whose losses are `tasks` in number.

    Raises:
        GraphError: No parameter is reached by every loss.
    """
    layers = shared_layers(graph, tasks)
    if not layers:
        raise GraphError(
            "no layer is shared: of the parameters with two or more dimensions, none is reached by every loss; "
            "check that all losses come from one network, or name the shared parameters with shared="
        )
    return (Held(layers[-1], layers[-1]),)


def shared_layers(graph: Graph, tasks: int) -> list[Tensor]:
    """The layers' weights that all of `tasks` losses reach, in the order in which the forward used them last."""
    everyone = (1 << tasks) - 1
    found: list[tuple[tuple[bool, int, bool], Tensor]] = []
    for leaf, nodes in graph.readers().items():
        reached = functools.reduce(operator.or_, (graph.tasks[node] for node in nodes))
        if not isinstance(leaf, nn.Parameter) or leaf.dim() < 2 or reached != everyone:
            continue
        # Where the tasks have a common forward, its last layer counts, although a head may use tied weights later.
        last = max((graph.tasks[node] == everyone, node._sequence_nr()) for node in nodes)
        # One node reads both parts of weight normalisation, of which the magnitudes, [n, 1], are a vector in disguise.
        found.append(((*last, sum(size > 1 for size in leaf.shape) > 1), leaf))
    return [leaf for _, leaf in sorted(found, key=operator.itemgetter(0))]
