"""The small network that the unit tests train."""

import pytest
import torch
from torch import nn

from gradnorm import GradNorm


class Net(nn.Module):
    """A trunk, whose last layer is `W`, and one head a task; the tasks' scales are ten apart."""

    def __init__(self, tasks=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(8, 2) for _ in range(tasks))

    @property
    def last(self):
        return self.trunk[2].weight

    def losses(self, x):
        features = self.trunk(x)
        return {name: 10**i * (head(features) - 1).square().mean() for i, (name, head) in enumerate(self.named())}

    def named(self):
        return zip("abc", self.heads, strict=False)


cpu_only = pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="what it tests is so on the CPU only")


def normal(*size, seed=0):
    """The same numbers on every device."""
    numbers = torch.randn(*size, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return numbers.to(torch.get_default_device())


def batch(seed=0, size=5):
    return normal(size, 6, seed=seed)


def train(net, balancer, steps, first=0, optimizer=None):
    """`steps` ordinary steps on batches of their own; returns the optimizer."""
    optimizer = optimizer or torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        balancer(net.losses(batch(step))).backward()
        optimizer.step()
        balancer.step()
    return optimizer


def trained(steps=5, **kwargs):
    """A network and a balancer that have seen `steps` steps."""
    net = Net()
    balancer = GradNorm(["a", "b", "c"], shared=net.last, **kwargs)
    train(net, balancer, steps)
    return net, balancer
