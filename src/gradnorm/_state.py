"""Module state that loaders and trainers may move, average, save and replace: buffers that are always initialized.

Loaders and trainers write to a module without calling it: `to_empty` and `from_pretrained` leave uninitialized memory,
`load_state_dict(assign=True)` assigns the caller's tensors, averages turn counts into fractions. Four rules keep the
state consistent:

- Initial values are kept on the CPU, so a state can be rebuilt at any time; on the meta device the state *is* the
  initial one.
- Moving a module changes device and dtype of its state, never the values, and no dtype is narrower than float32.
- All state has a floating dtype, so that it can be averaged and cast.
- The state contains the names of its tasks and of its layout, as bits. Only a state with the right ones was saved by
  such a balancer; a state without any was never written.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from ._errors import StateError
from ._numerics import at_least_float32
from ._torch_private import is_transformed

P = ParamSpec("P")
M = TypeVar("M", bound="SealedModule")


class StatefulModule(nn.Module):
    """A module without parameters that keeps the initial values of its buffers, and can reset them."""

    def __init__(self) -> None:
        super().__init__()
        self._initial: dict[str, Tensor] = {}
        self._loaded: set[str] = set()  # by load_state_dict, and not yet read

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As `nn.Module.register_buffer`; the first value is the initial one."""
        if tensor is not None and not tensor.is_meta and name not in self._initial:  # assignments call this, too
            self._initial[name] = tensor.detach().clone()
        super().register_buffer(name, tensor, persistent)

    def reset_parameters(self) -> None:
        """Reset to the initial values, in place."""
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in self._held():
                tensor.copy_(self._initial.get(name, tensor))  # a subclass may hold what was never built
            self._loaded.clear()
            self._read()

    def _read(self) -> None:
        """Update all that depends on the buffers' values, from the buffers."""

    def _moved(self) -> None:
        """Called after the buffers were moved or rebuilt: what depends on them is valid, and they may not be."""

    def _damaged(self) -> list[str]:
        """Names of the buffers with invalid values."""
        return [name for name, tensor in self._held() if not bool(torch.isfinite(tensor).all())]

    def _held(self, persistent: bool | None = None) -> list[tuple[str, Tensor]]:
        """The buffers that are there, by name."""
        aside = self._non_persistent_buffers_set
        held = [(name, tensor) for name, tensor in self._buffers.items() if tensor is not None]
        return held if persistent is None else [(name, t) for name, t in held if (name not in aside) == persistent]

    def _value(self, name: str) -> Tensor:
        """A buffer to read and to write: on the meta device its initial value."""
        tensor = self._buffers[name]
        assert tensor is not None
        return self._initial.get(name, tensor) if tensor.is_meta else tensor

    def _settle(self) -> None:
        """Turn whatever was assigned in their place into buffers: at least float32, writable, settings as given."""
        homes = [tensor.device for _, tensor in self._held(persistent=True) if not tensor.is_meta]
        for name, tensor in self._held():
            device = homes[0] if homes and tensor.is_meta else tensor.device
            if name in self._initial and name in self._non_persistent_buffers_set and device.type != "meta":
                tensor = self._initial[name].to(device, at_least_float32(tensor).dtype, copy=True)
            elif tensor.is_inference() or tensor.requires_grad or tensor.dtype != at_least_float32(tensor).dtype:
                tensor = at_least_float32(tensor.detach().clone())
            self._buffers[name] = tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As `nn.Module._apply`; `fn` determines device and dtype, not values."""

        def placed(tensor: Tensor) -> Tensor:
            try:
                return fn(tensor)
            except NotImplementedError:  # a meta tensor has no data to move
                if not tensor.is_meta:
                    raise
                return fn(torch.zeros_like(tensor, device="cpu"))

        before = self._held()
        super()._apply(placed, recurse)
        with torch.inference_mode(False), torch.no_grad():
            for name, old in before:
                new = self._buffers[name]
                assert new is not None
                if new is not old:  # it is the same in share_memory()
                    dtype = new.dtype if at_least_float32(new).dtype == new.dtype else old.dtype
                    value = old if new.is_meta or not old.is_meta else self._initial.get(name, new)
                    self._buffers[name] = value.detach().to(new.device, dtype, copy=True)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """As `nn.Module._load_from_state_dict`; `assign=True` assigns copies, in the buffers' own dtypes."""
        for name, tensor in self._held(persistent=True):
            value = state_dict.get(f"{prefix}{name}")
            if not isinstance(value, Tensor):
                continue
            self._loaded.add(name)
            state_dict[f"{prefix}{name}"] = value = value.detach().to(tensor.dtype, copy=True)
            if tensor.is_meta and not value.is_meta and tensor.shape == value.shape:
                self._buffers[name] = torch.empty_like(value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class SealedModule(StatefulModule):
    """The outermost stateful module: it verifies whose state it holds, and detects replaced buffers."""

    _names: Tensor
    _layout: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._sealed = b""
        # Where each buffer is found, and which one it was when the state was last taken over; `None`: not at all.
        self._bound: list[tuple[dict[str, Tensor | None], str, Tensor]] | None = None
        self._version = 0
        self._is_settled = False

    def _seal(self, names: Sequence[str]) -> None:
        """Bind all registered buffers to these names."""
        self._sealed = _sealed(_SEPARATOR.join(names).encode())
        layout = " ".join(sorted(self._persistent()))
        self.register_buffer("_names", _bits(self._sealed))
        self.register_buffer("_layout", _bits(zlib.crc32(layout.encode()).to_bytes(4, "big")))
        self.register_load_state_dict_post_hook(type(self)._after_load)
        self._bind()

    def _check_state(self) -> None:
        """Read tensors that were assigned in place of the buffers, or written into them, since the last check.

        Raises:
            StateError: They are of other tasks, of another update rule, part of a state, or damaged.
        """
        if torch.compiler.is_compiling():
            return
        is_bound = self._bound is not None and all(buffers.get(name) is tensor for buffers, name, tensor in self._bound)
        # DDP writes to the buffers in every forward, and reading them would synchronize with the device.
        is_known = is_bound and (self._names._version == self._version or (self._is_settled and _are_many()))
        if not is_known and not is_transformed(self._names):
            self._take_over()

    def reset_parameters(self) -> None:
        """Reset to the initial state, with all that depends on it."""
        for state in self._states():
            if state is not self:
                state.reset_parameters()
        super().reset_parameters()
        self._bind()

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; loaders call it last, and a compiled forward does not check."""
        self._check_state()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if not recurse:  # tools that process modules one by one leave a mixture until they are done
            return super()._apply(fn, recurse)
        self._check_state()
        was_meta = self._names.is_meta
        super()._apply(fn, recurse)
        if self._names.is_meta and not was_meta:
            self.reset_parameters()
        for state in self._states():
            state._moved()
        self._bind()
        return self

    def _take_over(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            states = self._states()
            for state in states:
                state._settle()
            held = self._persistent()
            is_fresh = all(tensor.is_meta for tensor in held.values())
            if not is_fresh and not self._is_ours(held):
                self.reset_parameters()
                return
            for state in states:
                state._loaded.clear()
                state._read()
            self._bind()
            self._is_settled = True

    def _is_ours(self, held: dict[str, Tensor]) -> bool:
        """Whether the buffers hold a state saved by a balancer; raises if it does not fit this one."""
        missing = {name for name, tensor in held.items() if tensor.is_meta} | self._not_loaded(held)
        if missing:
            raise StateError(
                f"only a part of the balancer's state was loaded, without {', '.join(sorted(missing))}; load all of "
                f"it, or nothing{_OR_RESET}"
            )
        if not self._check_seal(_bytes(self._names), _bytes(self._layout)):
            return False
        if damaged := [name for state in self._states() for name in state._damaged()]:
            raise StateError(f"the balancer's state is damaged, in {', '.join(damaged)}; load another one{_OR_RESET}")
        return True

    def _check_seal(self, names: bytes | None, layout: bytes | None) -> bool:
        """Whether this is the seal of a state for this balancer; false if there is none; raises if it is another's."""
        if names != self._sealed:
            if (found := _decode(names)) is None:
                return False
            mine = self._sealed.strip(_GUARD).decode().split(_SEPARATOR)
            raise StateError(
                f"state_dict is of the tasks {', '.join(found)}, this balancer's are {', '.join(mine)}; make the "
                "balancer with the saved names, in their order"
            )
        if layout != _bytes(self._initial["_layout"]):
            raise StateError(
                "the state was saved with another update rule or optimizer of the weights; make the balancer with the "
                f"same update={_OR_RESET}"
            )
        return True

    def _not_loaded(self, held: dict[str, Tensor]) -> set[str]:
        loaded = {
            f"{path}.{name}" if path else name
            for path, state in self.named_modules()
            if isinstance(state, StatefulModule)
            for name in state._loaded
        }
        return set(held) - loaded if loaded else set()

    def _states(self) -> list[StatefulModule]:
        """All stateful modules, innermost first."""
        return [module for module in reversed(list(self.modules())) if isinstance(module, StatefulModule)]

    def _persistent(self) -> dict[str, Tensor]:
        return {
            f"{path}.{name}" if path else name: tensor
            for path, state in self.named_modules()
            if isinstance(state, StatefulModule)
            for name, tensor in state._held(persistent=True)
        }

    def _bind(self) -> None:
        self._bound = [(state._buffers, name, tensor) for state in self._states() for name, tensor in state._held()]
        self._version = self._names._version
        self._is_settled = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        names, layout = (state_dict.get(f"{prefix}{name}") for name in ("_names", "_layout"))
        if isinstance(names, Tensor) and not names.is_meta:
            if names.dtype is torch.uint8:  # as it was saved before 0.2: the names alone, a byte each
                names = state_dict[f"{prefix}_names"] = _bits(_sealed(bytes(names.tolist())))
                layout = state_dict[f"{prefix}_layout"] = self._initial["_layout"]
            elif (bare := _bytes(names)) and bare[:1] != _GUARD:  # as it was saved before 0.2, too
                names = state_dict[f"{prefix}_names"] = _bits(_sealed(bare))
            if isinstance(layout, Tensor):  # before anything changes
                self._check_seal(_bytes(names), _bytes(layout))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _after_load(self, *_: object) -> None:
        self._bound = None
        if not self._not_loaded(self._persistent()):  # a loader may bring one tensor after the other
            self._check_state()


_SEPARATOR = "\0"
_GUARD = b"\xff"
"""Before and after the names, and in no name. Loaders leave memory as they found it where a checkpoint has nothing, and
that may be a freed balancer's, but for its first bytes, which an allocator overwrites."""
_OR_RESET = ", or call reset_parameters() to start from the initial state"


def built_on_cpu(init: Callable[Concatenate[M, P], None]) -> Callable[Concatenate[M, P], None]:
    """Wraps a constructor: computes values even under `torch.device("meta")`, and moves them there afterwards."""

    @wraps(init)
    def built(self: M, /, *args: P.args, **kwargs: P.kwargs) -> None:
        device = torch.get_default_device()
        with torch.inference_mode(False), torch.device("cpu"):
            init(self, *args, **kwargs)
        if device.type != "cpu":
            self.to(device)

    return built


def _sealed(names: bytes) -> bytes:
    return _GUARD + names + _GUARD


def _bits(data: bytes) -> Tensor:
    """As zeros and ones, which no average and no narrow type changes."""
    return torch.tensor([float(byte >> i & 1) for byte in data for i in range(8)], dtype=torch.float32, device="cpu")


def _bytes(bits: Tensor) -> bytes | None:
    """The bytes written as bits; `None` if these are none."""
    ones = bits > 0.5
    if bits.numel() % 8 or not bool(((bits - ones.to(bits.dtype)).abs() < 0.25).all()):
        return None
    numbers = ones.reshape(-1, 8).tolist()
    return bytes(sum(bit << i for i, bit in enumerate(byte)) for byte in numbers)


def _decode(sealed: bytes | None) -> list[str] | None:
    """The task names; `None` if no balancer can have written these bytes."""
    if sealed is None or sealed[:1] != _GUARD or sealed[-1:] != _GUARD:
        return None
    try:
        found = sealed[1:-1].decode().split(_SEPARATOR)
    except UnicodeDecodeError:
        return None
    return found if len(set(found)) == len(found) > 1 else None


def _are_many() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
