"""Guards of the arithmetic, each a named function with its reason. None of them waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 if its type is narrower.

    A half-precision norm overflows at 65504 and a bfloat16 one keeps three digits; the rule compares norms across tasks
    whose scales may be 10⁶ apart.

    Example:
        >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each row, [T, N] → [T], for entries from 1e-30 to 1e30 in float32.

    Squares of such entries leave float32's range, so each row is first scaled by its largest entry.

    Example:
        >>> row_norms(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
        tensor([5.0000e-30, 0.0000e+00])
    """
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1)
    scale = torch.where(largest > 0, largest, 1.0)
    return torch.linalg.vector_norm(rows / scale.unsqueeze(1), dim=1) * scale


def cosines(rows: Tensor, norms: Tensor) -> Tensor:
    """Cosine of the angle between each pair of rows, [T, N] and their norms [T] → [T, T]; 0 beside a zero row.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> cosines(x, row_norms(x))[0, 1].item()
        0.7071067690849304
    """
    unit = rows / torch.where(norms > 0, norms, 1.0).unsqueeze(1)
    return (unit @ unit.T).clamp(-1.0, 1.0)
