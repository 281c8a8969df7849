"""Run a function in gloo processes, two unless told, over a `file://` store, and hand back what each returns.

Workers end by `os._exit` once their result is written: gloo's teardown aborts now and then after the work is done.
"""

import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def launch(function, folder: Path, *arguments, world=WORLD):
    """`function(rank, *arguments)` in each process; the results in order of rank."""
    folder.mkdir(exist_ok=True)
    context = mp.get_context("spawn")
    parts = (world, function, str(folder), arguments)
    workers = [context.Process(target=_work, args=(rank, *parts)) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive(), "a worker hangs"
    errors = [path.read_text() for path in sorted(folder.glob("error*"))]
    assert not errors, "\n".join(errors)
    return [torch.load(folder / f"result{rank}", weights_only=False) for rank in range(world)]


def _work(rank, world, function, folder, arguments):
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        torch.save(function(rank, *arguments), f"{folder}/result{rank}")
        dist.barrier()
    except Exception:
        Path(folder, f"error{rank}").write_text(traceback.format_exc())
    sys.stdout.flush()
    os._exit(0)
