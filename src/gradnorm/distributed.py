"""What the processes of a data-parallel run measured, added up: one collective a step.

Each process measures its own part of the batch. The model gets the mean gradient, and the norm of a mean is not the
mean of the norms; so the tasks' gradients at `W` themselves are added up, together with everything needed to divide by.
The sum is the same on all ranks to the last bit, and so are the weights made from it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist

from ._numerics import row_norms
from ._types import Sums

Reduce = Literal["gradients", "norms"]


def data_parallel(group: dist.ProcessGroup | None) -> bool:
    """Whether there are other processes to reduce over."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


@torch.no_grad()
def reduce_sums(sums: Sums, group: dist.ProcessGroup | None, reduce: Reduce, at_features: bool) -> Sums:
    """The sums over all processes of `group`, by one all-reduce; every rank must call this.

    Args:
        sums: Of this process.
        group: `None` for all processes.
        reduce: "gradients" adds up rows; "norms" their norms, T numbers instead of T·N, which overestimates.
        at_features: The rows are norms of feature gradients. Features of different processes are entries of one longer
            vector, so squares add up.
    """
    rows = sums.rows
    if at_features:
        rows = rows.square()
    elif reduce == "norms":
        rows = row_norms(rows).unsqueeze(1)
    parts = [rows, sums.losses, sums.factors, sums.counts]
    wide = torch.promote_types(rows.dtype, sums.losses.dtype)
    flat = torch.cat([part.reshape(-1).to(wide) for part in parts])
    dist.all_reduce(flat, group=group)
    pieces = flat.split([part.numel() for part in parts])
    total = Sums(*(piece.view_as(part).to(part.dtype) for piece, part in zip(pieces, parts, strict=True)))
    return total._replace(rows=total.rows.sqrt()) if at_features else total
