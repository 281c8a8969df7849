"""The tasks' gradients at `W` in one backward, one row per task.

Whole rows take T times the memory of `W`'s gradient. They are needed where others are added to them, from further
micro-batches or other processes; otherwise a row's norm is computed once the row is complete, and the row is freed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .._numerics import norms, row_norms


class Rows(ABC):
    """Rows to which contributions are added.

    Attributes:
        are_whole: Whether they are the gradients themselves.
    """

    are_whole: bool

    @abstractmethod
    def add(self, tasks: Sequence[int], rows: Tensor) -> None:
        """Add to the rows of K tasks; `rows` is [K, N]."""

    @abstractmethod
    def taken(self) -> tuple[Tensor, Tensor | None]:
        """[T, N], zero for tasks that were absent; and the rows' inner products, [T, T], if they are wanted."""


class WholeRows(Rows):
    """The rows themselves.

    Args:
        count: T.
    """

    are_whole = True

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows: Tensor | None = None

    def add(self, tasks: Sequence[int], rows: Tensor) -> None:
        if self._rows is None:
            self._rows = rows.new_zeros(self._count, rows.shape[1])
        for task, row in zip(tasks, rows, strict=True):
            self._rows[task] += row

    def taken(self) -> tuple[Tensor, Tensor | None]:
        assert self._rows is not None
        return self._rows, None


class RowNorms(Rows):
    """Their norms, as rows of one number.

    Args:
        count: T.
        expected: Number of contributions to each task's row.
        products: Whether inner products are wanted, for which all rows are kept until these are computed.
    """

    are_whole = False

    def __init__(self, count: int, expected: Mapping[int, int], products: bool) -> None:
        self._count = count
        self._missing = dict(expected)
        self._products = products
        self._rows: dict[int, Tensor] = {}
        self._norms: dict[int, Tensor] = {}

    def add(self, tasks: Sequence[int], rows: Tensor) -> None:
        for task in tasks:
            self._missing[task] -= 1
        if not self._products and not self._rows and not any(self._missing[task] for task in tasks):
            self._norms.update(zip(tasks, norms(rows.unbind()), strict=True))
            return
        for task, row in zip(tasks, rows, strict=True):
            self._rows[task] = self._rows[task] + row if task in self._rows else row
            if not self._products and not self._missing[task]:
                (self._norms[task],) = norms([self._rows.pop(task)])

    def taken(self) -> tuple[Tensor, Tensor | None]:
        # Missing contributions had no gradient.
        like = next(iter([*self._norms.values(), *self._rows.values()]))
        if self._products:
            rows = torch.stack([self._rows.get(task, torch.zeros_like(like)) for task in range(self._count)])
            return row_norms(rows).unsqueeze(1), rows @ rows.T
        found = self._norms | dict(zip(self._rows, norms(list(self._rows.values())) if self._rows else (), strict=True))
        zero = like.new_zeros(()) if len(found) < self._count else like
        return torch.stack([found.get(task, zero) for task in range(self._count)]).unsqueeze(1), None
