"""All uses of private PyTorch APIs: one function each, with the reason.

A PyTorch release that changes private APIs breaks this file only. Each function states what it reads and why there is
no public API (torch 2.6 to 2.13).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary


def output_shape(node: Any, nr: int) -> torch.Size:
    """Shape of output `nr` of a graph's node in the forward; the public `metadata` is the user's own dict."""
    return torch.Size(node._input_metadata[nr].shape)


def output_dtype(node: Any, nr: int) -> torch.dtype:
    """Dtype of output `nr` of a graph's node in the forward; see `output_shape`."""
    return node._input_metadata[nr].dtype


def saved(node: Any, name: str) -> Any:
    """An attribute that an operation saved, such as the dimension of a `cat`; exposed for debugging only."""
    return getattr(node, f"_saved_{name}")


def current_backward() -> int:
    """Identifier of the running backward: only this shows that two losses run backward as one."""
    return torch._C._current_graph_task_id()


def expect_no_capture(optimizer: Any) -> None:
    """Suppress the warning of an optimizer with `capturable=True` outside of a CUDA graph that this may be slow.

    `capturable` keeps its step counter on the device; torch warns once per optimizer, without an option.
    """
    optimizer._warned_capturable_if_run_uncaptured = True


@contextmanager
def without_hooks(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Take a gradient of these leaves without calling the hooks that users have registered on them.

    Those hooks are meant for the optimizer's gradient; there is no public way to bypass them.
    """
    found = [(hooks, dict(hooks)) for tensor in tensors if (hooks := tensor._backward_hooks)]
    for hooks, _ in found:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, kept in found:
            hooks.update(kept)


def watch_hooks(leaf: Tensor, changed: Callable[[Tensor, Tensor], None]) -> None:
    """Call `changed(before, after)` if the hooks on a leaf replace its gradient in the running backward."""
    hooks: dict[int, Any] = leaf._backward_hooks  # pyright: ignore[reportAssignmentType]
    kept, arrived = dict(hooks), []
    hooks.clear()
    first = leaf.register_hook(lambda gradient: arrived.append(gradient))  # hooks run in the order of the dictionary
    hooks.update(kept)

    def compare(gradient: Tensor) -> None:
        before = arrived.pop()
        if before is not gradient:
            changed(before, gradient)

    last = leaf.register_hook(compare)
    for handle in (first, last):
        at_end_of_backward(handle.remove)


def weakly_keyed(items: Mapping[Tensor, Any]) -> MutableMapping[Tensor, Any]:
    """A dictionary by tensors that keeps none of them alive.

    Python's own compares keys by `==`, which tensors do elementwise; that of `torch.utils.weak` is not documented.
    """
    return WeakIdKeyDictionary(items)


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Call `function` when the running backward has ended, unless it raises; hooks of tensors run before."""
    torch.autograd.Variable._execution_engine.queue_callback(function)  # pyright: ignore[reportAttributeAccessIssue]


def changes(tensor: Tensor) -> int:
    """Autograd's version counter of `tensor`: the number of in-place changes, as by an optimizer; private."""
    return tensor._version


def is_registered(handle: RemovableHandle, if_gone: bool = False) -> bool:
    """Whether a hook is still registered, or `if_gone` where its object no longer exists.

    The handle knows, and does not expose it.
    """
    hooks = handle.hooks_dict_ref()
    return if_gone if hooks is None else handle.id in hooks


def is_transformed(tensor: Tensor) -> bool:
    """Whether `tensor` is inside a `torch.func` transform, whose graphs are separate from autograd's."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]


def is_exporting() -> bool:
    """Whether `torch.export` is running.

    The public `torch.compiler.is_exporting()` was always true to a compiler, before torch 2.13.
    """
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


def in_compiled_autograd() -> bool:
    """Whether the running backward is one compiled graph; the module is loaded only when compiling."""
    compiled = sys.modules.get("torch._dynamo.compiled_autograd")
    return bool(getattr(compiled, "in_compiled_autograd_region", False))


_BREAKS_WITH_MESSAGE = torch.__version__ >= "2.8"
"""Whether a graph break can carry a reason; older versions break without."""


def outside_compiled_graph(function: Callable[..., Any], *args: object) -> Any:
    """Call `function` outside of any graph being compiled, which causes a graph break."""
    if torch.compiler.is_compiling():
        if _BREAKS_WITH_MESSAGE:
            # A literal, as it must be for the compiler to show it where fullgraph=True refuses the break.
            torch._dynamo.graph_break(
                msg="tasks cannot be told apart inside one graph; call the balancer outside of what is compiled with "
                'fullgraph=True, or leave that out, or measure with at="branches"'
            )
        # Not as a decorator: that would load the compiler with `import gradnorm`.
        return torch.compiler.disable(function)(*args)  # pyright: ignore
    return function(*args)


def never_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, never traced by a loaded compiler, which would also trace code inside a backward."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


@contextmanager
def first_backward_still_to_come(nodes: Iterable[Any]) -> Iterator[None]:
    """Let DDP's sink nodes among `nodes` run without starting the first backward of a static graph.

    With `static_graph=True` DDP synchronizes its first backward at the end of whichever backward runs its sink first;
    a measurement before that would be mistaken for it, and no gradient ever synchronized. There is no public API.
    """
    models = [node.ddp_weakref() for node in nodes if type(node).__name__ == "_DDPSinkBackward"]
    before = [(m, m._static_graph_delay_allreduce_enqueued) for m in models if m is not None and m.static_graph]
    for model, _ in before:
        model._static_graph_delay_allreduce_enqueued = True
    try:
        yield
    finally:
        for model, enqueued in before:
            model._static_graph_delay_allreduce_enqueued = enqueued


class Written(NamedTuple):
    """The part of a tensor that `tensor[part] = values` wrote: sizes and strides of both, and the part's offset."""

    base: list[tuple[int, int]]
    part: list[tuple[int, int]]
    offset: int


def written(node: Any) -> Written | None:
    """The part that a `CopySlices` node overwrote; `None` if its operation did more than that.

    The node does not expose it. So it is run on a meta tensor, and stopped as soon as it has sliced out its part.
    """
    cutting = _Cutting()
    try:
        with cutting:
            node(torch.empty(output_shape(node, 0), dtype=output_dtype(node, 0), device="meta"))
    except _Enough:
        return Written(cutting.base, cutting.part, cutting.offset)
    except RuntimeError:  # more than a copy, or an operation that needs data
        pass
    return None


class _Enough(Exception):  # noqa: N818
    """No failure: the rest of the node needs data."""


class _Cutting(TorchDispatchMode):
    """Records the sizes and strides with which a `CopySlices` node slices its part out of the gradient."""

    base: list[tuple[int, int]]
    part: list[tuple[int, int]]
    offset: int

    def __init__(self) -> None:
        super().__init__()
        self._is_cut = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._opname
        if name == "new_empty_strided":
            self.base = list(zip(args[1], args[2], strict=True))
        elif name == "as_strided":
            sizes, strides, self.offset = args[1], args[2], args[3] if len(args) > 3 else 0
            self.part, self._is_cut = list(zip(sizes, strides, strict=True)), True
        elif self._is_cut and name == "_to_copy":  # the values' own gradient, as they were: nothing but a copy
            raise _Enough
        elif self._is_cut and name not in ("clone", "zeros_like"):
            raise RuntimeError(f"{name} is more than a copy")
        return function(*args, **(kwargs or {}))
