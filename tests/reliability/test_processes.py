"""A rank that fails or dies leaves the others an error within the process group's own timeout, and no hang."""

import datetime
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from gradnorm import GradNorm

from ..unit.networks import Net, batch

TIMEOUT = 5


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("broken on purpose")


def fail_in_backward(loss):
    Breaks.apply(loss).backward()


def fail_and_stay(loss):
    """No connection breaks: the others learn of it by the timeout alone."""
    try:
        fail_in_backward(loss)
    except ValueError:
        time.sleep(90)


def die(loss):
    os.kill(os.getpid(), signal.SIGKILL)


def leave_before_the_step(loss):
    loss.backward()
    os._exit(3)


FAULTS = [fail_in_backward, fail_and_stay, die, pytest.param(leave_before_the_step, marks=pytest.mark.slow)]


class Outputs(Net):
    def forward(self, x):
        return self.losses(x)


def work(rank, fault, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    net = Outputs()
    model = DistributedDataParallel(net)
    balancer = GradNorm(["a", "b", "c"], shared=net.last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    said, started = "", time.monotonic()
    try:
        for step in range(5):
            started = time.monotonic()
            optimizer.zero_grad()
            loss = balancer(model(batch(step)))
            if rank == 1 and step == 2:
                fault(loss)
            else:
                loss.backward()
            optimizer.step()
            (folder / f"steps{rank}").write_text(str(step + 1))
    except (RuntimeError, ValueError) as error:
        said = str(error)
    (folder / f"waited{rank}").write_text(str(time.monotonic() - started))
    (folder / f"error{rank}").write_text(said)
    os._exit(0)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_other_rank_gets_an_error_in_time(fault, tmp_path):
    context = mp.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, fault, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    workers[0].join(80)
    hangs = workers[0].is_alive()
    for worker in workers:
        worker.kill()
    assert not hangs, "still waiting after 80 s"
    assert (tmp_path / "steps0").read_text() == "2"
    assert (tmp_path / "error0").read_text(), "the rank that lives must be told"
    assert float((tmp_path / "waited0").read_text()) < 3 * TIMEOUT, "and within its own timeout, on a busy machine"
