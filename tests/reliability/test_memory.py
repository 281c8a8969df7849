"""10,000 steps in flat memory, with everything that keeps something: history, attach, missing tasks, bad numbers."""

import gc

import psutil
import pytest
import torch

from gradnorm import GradNorm

from ..unit.networks import Net, batch

NAMES = ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:GradNorm left the loss weights unchanged")
@pytest.mark.filterwarnings("ignore:gradients were cleared between two backwards without a step")
def test_ten_thousand_steps():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, history=100)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    balancer.attach(optimizer)

    def steps(count):
        for step in range(count):
            losses = net.losses(batch(step % 10))
            if step % 5 == 0:
                losses["b"] = None
            if step % 7 == 0:
                losses["c"] = losses["c"] + torch.inf  # an infinite loss with a sound gradient
            optimizer.zero_grad()
            balancer(losses).backward()
            if step % 11:
                optimizer.step()
        gc.collect()
        return psutil.Process().memory_info().rss, sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    steps(2000)  # rare things, such as cosines of all three tasks, have been kept for the first time by then
    memory, tensors = steps(1000)
    later, more = steps(10_000)
    assert more <= tensors
    assert later - memory < 4 * 2**20, f"{(later - memory) / 2**20:.1f} MiB in 10,000 steps"
