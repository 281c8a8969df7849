"""The self-check of the first measured step.

A measurement runs a part of the graph again for every task, on the tasks' gradients. That has no side effects if all
functions in it are pure. This is checked by their results: a product taken twice must be the same, its inputs must be
unchanged, and the products of the tasks must add up to the product of their sum, which the model's own backward
computes. The check costs as much as one measurement, once, and synchronizes with the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._errors import GraphError
from ._operations import TOLERANCE, Path, foreign_below
from ._products import Gradients, product
from ._shared import dense, flat


class SelfCheck:
    """Checks the products from one shared node.

    Args:
        node: The node where the tasks meet.
        used: The tensors of `W`.
        path: The kind of the functions in between.

    Attributes:
        has_passed: Whether products were compared; numbers that are not finite are inconclusive.
    """

    def __init__(self, node: Any, used: Sequence[Tensor], path: Path) -> None:
        self._node = node
        self._used = used
        self._path = path
        self._sum: dict[int, Tensor] = {}
        self._found: Tensor | None = None
        self._scale = torch.zeros(())
        self.has_passed = False

    def product(self, gradients: Gradients, is_again: bool) -> Sequence[Tensor | None]:
        """As `product`, and checked.

        Raises:
            GraphError: A function on the path is not pure.
        """
        before = {nr: each.clone() for nr, each in gradients.items()}
        found = self._product(gradients, is_again)
        row = flat(found, self._used)
        if not bool(torch.isfinite(row).all()):
            return found  # an overflow says nothing
        if not all(torch.equal(dense(each), dense(before[nr])) for nr, each in gradients.items()):
            raise GraphError(_OVERWRITES.format(foreign_below(self._node)))
        self._compare(row, flat(self._product(before), self._used), row.norm(), _CHANGES)
        for nr, each in before.items():
            self._sum[nr] = each + self._sum[nr] if nr in self._sum else each
        self._found = row if self._found is None else self._found + row
        self._scale = self._scale.to(row.device) + row.norm()
        self.has_passed = True
        return found

    def finish(self) -> None:
        """Check the sum, once all tasks have arrived.

        Raises:
            GraphError: Their gradients do not add up to the model's.
        """
        if self._found is not None and self._is_apart(self._found, whole := self._whole(1), self._scale):
            # Where the gradient is zero but for rounding nothing adds up, and doubles all the same.
            doubled = self._whole(2)
            self._compare(2 * whole, doubled, doubled.norm(), _DO_NOT_ADD_UP)
        self._sum, self._found = {}, None

    def _whole(self, factor: int) -> Tensor:
        """The product of the sum of all tasks' gradients, times a factor."""
        return flat(self._product({nr: factor * each for nr, each in self._sum.items()}), self._used)

    def _product(self, gradients: Gradients, is_again: bool = True) -> Sequence[Tensor | None]:
        return product(self._node, gradients, self._used, self._path, is_again)

    def _compare(self, one: Tensor, other: Tensor, scale: Tensor, message: str) -> None:
        if self._is_apart(one, other, scale):
            raise GraphError(message.format(foreign_below(self._node)))

    def _is_apart(self, one: Tensor, other: Tensor, scale: Tensor) -> bool:
        """In half precision a sum may overflow where its terms do not: `∞ − ∞` is not apart."""
        return bool((one - other).norm() > TOLERANCE * scale)


_REMEDY = (
    '; measure with at="features", shared=, initial_weights=None and check=False, which run nothing twice, or name a '
    "layer after it with shared= (check=False alone disables this check)"
)
_CHANGES = (
    "the first measured step checks itself, and a gradient at W was another one when it was taken again: {} overwrites "
    f"what it saved for its backward, is random, or a hook of a tensor acts differently the second time{_REMEDY}"
)
_OVERWRITES = f"the first measured step checks itself, and {{}} has overwritten the gradient that it was given{_REMEDY}"
_DO_NOT_ADD_UP = (
    "the first measured step checks itself, and the tasks' gradients at W do not add up to the model's: {}, or a hook "
    f"between where the tasks meet and W, does not act on gradients linearly{_REMEDY}"
)


def adds_up(
    found: Sequence[Sequence[Tensor | None]], used: Sequence[Tensor], whole: Callable[[], Sequence[Tensor | None]]
) -> bool:
    """Whether gradients of the losses add up to that of their sum; false where numbers are not finite.

    Args:
        found: Of each loss, at each tensor of `W`.
        used: The tensors of `W`.
        whole: Computes it of their sum.

    Raises:
        GraphError: They do not, or the latter is another one when it is taken again.
    """
    rows = [flat(each, used) for each in found]
    one, other = flat(whole(), used), flat(whole(), used)
    scale = torch.stack([row.norm() for row in rows]).sum()
    if not bool(torch.isfinite(scale)):
        return False
    if bool((one - other).norm() > TOLERANCE * scale):
        raise GraphError(_CHANGES.format("a function"))
    if bool((sum(rows[1:], rows[0]) - one).norm() > TOLERANCE * scale):
        raise GraphError(_DO_NOT_ADD_UP.format("a function"))
    return True
