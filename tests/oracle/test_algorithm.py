"""Ours against both updates written literally, in float64: weights and model parameters."""

import copy

import pytest
import torch
from torch import nn

from gradnorm import GradNorm

from .graphs import RandomNet
from .literal import Literal, LiteralClosedForm

UPDATES = {"descent": Literal, "closed-form": LiteralClosedForm}


class Toy(nn.Module):
    """The paper's toy network, smaller; the tasks' scales are far apart."""

    def __init__(self, sigmas=(1.0, 30.0, 100.0)):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(16, 5) for _ in sigmas)
        self.sigmas = sigmas

    def losses(self, x, y):
        features = self.trunk(x)
        return [
            (head(features) - sigma * torch.tanh(y)).square().mean()
            for head, sigma in zip(self.heads, self.sigmas, strict=True)
        ]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_a_thousand_steps_on_the_toy_network_equal_the_literal_algorithm(alpha, update):
    torch.manual_seed(0)
    ours = Toy().double()
    literal_model = copy.deepcopy(ours)
    W, literal_W = list(ours.trunk[2].parameters()), list(literal_model.trunk[2].parameters())
    balancer = GradNorm(3, shared=W, alpha=alpha, update=update).double()
    literal = UPDATES[update](3, literal_W, alpha)
    optimizer, literal_optimizer = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (ours, literal_model))
    B = torch.randn(20, 5, dtype=torch.float64)
    for _ in range(1000):
        x = torch.randn(8, 20, dtype=torch.float64)
        optimizer.zero_grad()
        balancer(ours.losses(x, x @ B)).backward()
        optimizer.step()
        balancer.step()
        literal.step(literal_model.losses(x, x @ B), literal_optimizer)
    close(balancer.weights, literal.w.detach())
    assert balancer.weights.std() > 0.05, "the weights must have moved for this to mean anything"
    for a, b in zip(ours.parameters(), literal_model.parameters(), strict=True):
        close(a, b)


SEEDS = [range(2), *(pytest.param(range(i, i + 10), marks=pytest.mark.slow) for i in range(2, 200, 10))]


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
@pytest.mark.parametrize("update", UPDATES)
def test_two_hundred_steps_on_random_graphs_equal_the_literal_algorithm(seeds, update):
    for seed in seeds:
        ours = RandomNet(seed)
        literal_model = copy.deepcopy(ours)
        balancer = GradNorm(ours.tasks, shared=ours.W, alpha=1.0, update=update).double()
        literal = UPDATES[update](ours.tasks, literal_model.W, 1.0)
        optimizer, literal_optimizer = (torch.optim.SGD(m.parameters(), lr=1e-4) for m in (ours, literal_model))
        for _ in range(200):
            optimizer.zero_grad()
            balancer(ours.losses()).backward()
            optimizer.step()
            balancer.step()
            literal.step(literal_model.losses(), literal_optimizer)
        close(balancer.weights, literal.w.detach())
        for a, b in zip(ours.parameters(), literal_model.parameters(), strict=True):
            close(a, b)


def test_a_model_gets_the_gradient_of_the_weighted_sum():
    for seed in range(20):
        net = RandomNet(seed)
        balancer = GradNorm(net.tasks, shared=net.W).double()
        for step in range(3):
            net.zero_grad()
            weights = balancer.weights.clone()
            expected = torch.autograd.grad(
                (weights * torch.stack(net.losses())).sum(), list(net.parameters()), allow_unused=True
            )
            balancer(net.losses()).backward()
            balancer.step()
            for parameter, gradient in zip(net.parameters(), expected, strict=True):
                if gradient is None:
                    assert parameter.grad is None
                else:
                    assert torch.equal(parameter.grad, gradient), (seed, step)
