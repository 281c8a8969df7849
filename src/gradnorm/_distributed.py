"""Reduction of the measurements over the processes of a data-parallel run: one collective per step.

Each process measures its own part of the batch. The model gets the mean gradient, and the norm of a mean is not the
mean of the norms; so the tasks' gradients at `W` themselves are summed, together with all divisors. The sum is bitwise
the same on all ranks, and so are the weights computed from it.
"""

from __future__ import annotations

import zlib

import torch
import torch.distributed as dist

from .capture import Sums


def data_parallel(group: dist.ProcessGroup | None) -> bool:
    """Whether there are other processes to reduce over."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


@torch.no_grad()
def reduce_sums(sums: Sums, group: dist.ProcessGroup | None) -> Sums:
    """The sums over all processes of `group`, by one all-reduce; every rank must call this.

    Args:
        sums: The sums of this process.
        group: `None` for all processes.
    """
    parts = sums.entries, *sums.per_task
    wide = torch.promote_types(sums.entries.dtype, sums.losses.dtype)
    flat = torch.cat([part.reshape(-1).to(wide) for part in parts])
    dist.all_reduce(flat, group=group)
    pieces = flat.split([part.numel() for part in parts])
    entries, losses, factors, counts, scales = (
        piece.view_as(part).to(part.dtype) for piece, part in zip(pieces, parts, strict=True)
    )
    return Sums(entries, losses, factors, counts, scales)


def agree(words: str, group: dist.ProcessGroup | None, device: torch.device) -> bool:
    """Whether all processes of `group` give the same text; every rank must call this; synchronizes with the device."""
    number = zlib.crc32(words.encode())
    found = torch.tensor([number, -number], device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    return bool(found[0] == -found[1])
