"""Where tasks meet: their contributions until all have arrived, and what is measured of them there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._errors import StateError
from .._torch_private import output_dtype, output_shape
from ._alone import Outsiders
from ._graph import FrontierEdge
from ._measurement import Measurement, Sums
from ._operations import Path
from ._products import Gradients
from ._self_check import SelfCheck
from ._shared import SharedParameter


@dataclass
class GradientBuffer:
    """The contributions of one task to one shared node, until all have arrived."""

    task: int
    expected: int
    waiting: int = 0
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def add(self, node: Any, edge: FrontierEdge, gradient: Tensor | None) -> None:
        """Add a contribution that has arrived at `node`."""
        self.waiting -= 1
        if gradient is None:
            return
        if not edge.is_direct:
            gradient = gradient.reshape(output_shape(node, edge.nr)).to(output_dtype(node, edge.nr))
        if (known := self.gradients.get(edge.nr)) is not None:
            gradient = known + gradient
        self.gradients[edge.nr] = gradient


@dataclass
class Meeting:
    """A shared node, and the tasks that meet there."""

    node: Any
    path: Path
    buffers: list[GradientBuffer] = field(default_factory=list)
    outputs: set[int] = field(default_factory=set)
    waiting: int = 0
    is_batched: bool | None = None
    check: SelfCheck | None = None
    has_run: bool = False

    def reset(self) -> None:
        """Nothing has arrived."""
        self.waiting, self.check, self.has_run = len(self.buffers), None, False
        for buffer in self.buffers:
            buffer.waiting, buffer.gradients = buffer.expected, {}


class AtMeetings(Measurement):
    """Base of the measurements where tasks meet; subclasses define what is measured of a task's gradient.

    Attributes:
        check: Whether the next measured backward checks itself.
        may_run_twice: Whether functions that belong to one task may be run again.
        watches_hooks: Whether the next backward shows if a hook on `W` takes parts of its gradient away.
        outsiders: Whether more than a task's loss runs backward through what belongs to it alone.
        adds_up: Whether the measurements of several backwards can be added; if not, only one backward is of use.
        takes_products: Whether contributions are propagated to `W`.
    """

    adds_up = True
    takes_products = False

    def __init__(self, *args: Any, check: bool = True) -> None:
        super().__init__(*args)
        self.check = self.may_run_twice = check
        self.watches_hooks = check and self.takes_products
        self.outsiders = Outsiders(check)
        self._sums: Sums | None = None

    @property
    def sums(self) -> Sums | None:
        """The sums over the backwards since the last `clear`; `None` if there was none."""
        return self._sums

    def clear(self) -> None:
        super().clear()
        self._sums = None

    def add(self, sums: Sums) -> None:
        self._sums = sums if self._sums is None else self._sums.plus(sums)

    def discard(self) -> None:
        """Discard the sums so far, which are of another layer."""
        if self._sums is not None:
            self._sums, self.is_partial = None, True

    @abstractmethod
    def entries(self, meeting: Meeting, gradients: Sequence[Gradients], shared: Sequence[SharedParameter]) -> Tensor:
        """[K, N], the entries to add for the contributions of K tasks to one shared node."""

    def can_be_batched(self, meeting: Meeting, shared: Sequence[SharedParameter], device: torch.device) -> bool:
        """Whether to measure the contributions of all tasks together."""
        return False

    def nothing(self, like: Tensor) -> Sums:
        if not self.layer.parameters:
            raise StateError("this process has seen no loss yet, so W is not known here; give the layer with shared=")
        if not self.layer.is_confirmed:
            raise StateError("this batch has no task, and W is not settled yet; give the layer with shared=")
        zeros = torch.zeros_like(like)
        return Sums(self.no_entries(like), zeros, zeros, zeros, zeros)

    @abstractmethod
    def no_entries(self, like: Tensor) -> Tensor:
        """[T, N], zeros."""
