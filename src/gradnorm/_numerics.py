"""Numerical safeguards, each a function with its reason. None synchronizes with the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 if its dtype is narrower.

    A half-precision norm overflows at 65504 and a bfloat16 one keeps three digits; the rule compares norms across tasks
    whose scales may be 10⁶ apart.

    Examples:
        >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return at_least(x, torch.float32)


def at_least(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x`, in `dtype` if its dtype is narrower.

    Examples:
        >>> at_least(torch.ones(2, dtype=torch.float64), torch.float32).dtype
        torch.float64
    """
    return x if x.dtype is dtype else x.to(torch.promote_types(x.dtype, dtype))


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each row, [T, N] → [T], for norms within 1e±19, where squares stay in float32's range.

    Beyond, a norm is inf, which the balancer skips, or 0, which changes no weight.

    Examples:
        >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.])
    """
    return torch.stack(norms(rows.unbind()))


def norms(rows: Sequence[Tensor]) -> list[Tensor]:
    """Euclidean norm of each of several vectors; the same to the last bit, however many they are.

    Examples:
        >>> norms([torch.tensor([3.0, 4.0])])
        [tensor(5.)]
    """
    return list(torch._foreach_norm(list(rows)))  # pyright: ignore[reportPrivateImportUsage]


def cosines(products: Tensor, norms: Tensor) -> Tensor:
    """Cosine of the angle between each pair of rows, from their inner products [T, T] and norms [T]; NaN beside zero.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> cosines(x @ x.T, row_norms(x))
        tensor([[1.0000, 0.7071],
                [0.7071, 1.0000]])
    """
    return products / torch.outer(norms, norms)
