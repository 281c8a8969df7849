"""The derivatives are those of autograd, and the solutions solve their equations."""

import math

import pytest
import torch
from torch import nn

from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.engine.training import advance
from gradnorm_studies.helmholtz import EQUATIONS, HelmholtzConfig, Solver, derivatives
from gradnorm_studies.networks import perceptron


@pytest.fixture
def double():
    """float64: fourth derivatives lose digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
def test_derivatives_are_those_of_autograd():
    torch.manual_seed(0)
    network = nn.Sequential(perceptron([2, 8, 8], nn.Tanh), nn.Linear(8, 1))
    at, ways = torch.randn(5, 2), [(1.0, 0.0), (0.3, -1.2)]
    found = derivatives(network, at, ways, order=4)
    for place, way in enumerate(ways):
        along = torch.zeros(5, 1, requires_grad=True)
        value = network(at + along * torch.tensor(way))
        for order in range(5):
            torch.testing.assert_close(found[order, place], value.squeeze(1))
            (value,) = torch.autograd.grad(value.sum(), along, create_graph=True)


class Wave(nn.Module):
    """`sin ax sin by` behind the interface of a network, with its derivatives by autograd."""

    def __init__(self, equation):
        super().__init__()
        self.equation = equation

    def forward(self, at):
        return self.equation.solution(at)


def exact(solution, at, directions, order):
    """As `derivatives`, of any function."""
    found = []
    for way in directions:
        along = torch.zeros(len(at), 1, requires_grad=True)
        value = solution(at + along * torch.tensor(way))
        orders = [value.squeeze(1)]
        for _ in range(order):
            (value,) = torch.autograd.grad(value.sum(), along, create_graph=True)
            orders.append(value.squeeze(1))
        found.append(torch.stack(orders))
    return torch.stack(found, dim=1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["Helmholtz", "Kirchhoff"])
def test_the_solution_has_no_loss_and_another_function_has(name, monkeypatch):
    monkeypatch.setattr("gradnorm_studies.helmholtz.derivatives", exact)
    equation = EQUATIONS[name]
    generator = torch.Generator().manual_seed(0)
    inside, edges = equation.draw(64, generator), equation.draw_edges(16, generator)
    scale = 4 * math.pi**4
    right = equation.losses(Wave(equation), inside, edges)
    assert len(right) == len(equation.tasks)
    assert max(loss.item() for loss in right) < 1e-6 * scale
    wrong = equation.losses(lambda at: equation.solution(at) + at.cosh().prod(1, keepdim=True), inside, edges)
    assert min(loss.item() for loss in wrong) > 1e-3


def test_burgers_solution_solves_the_equation_and_starts_as_it_should():
    equation = EQUATIONS["Burgers"]
    at = torch.tensor([[0.3, 0.2], [-0.5, 0.5], [0.7, 0.9]], dtype=torch.float64)
    h = 1e-3

    def u(x=0.0, t=0.0):
        return equation.solution(at + torch.tensor([x, t], dtype=torch.float64)).double()

    over_time = (u(t=h) - u(t=-h)) / (2 * h)
    slope = (u(x=h) - u(x=-h)) / (2 * h)
    curvature = (u(x=h) - 2 * u() + u(x=-h)) / h**2
    torch.testing.assert_close(over_time + u() * slope, equation.viscosity * curvature, atol=2e-3, rtol=0)
    start = torch.tensor([[0.3, 0.0], [-0.8, 0.0]])
    torch.testing.assert_close(equation.solution(start), -torch.sin(math.pi * start[:, :1]))


@pytest.mark.parametrize("name", EQUATIONS)
def test_points_lie_where_they_should(name):
    equation = EQUATIONS[name]
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(equation.low), torch.tensor(equation.high)
    inside = equation.draw(100, generator)
    assert ((inside >= low) & (inside <= high)).all()
    left, right, bottom, top = equation.draw_edges(9, generator)
    assert (left[:, 0] == low[0]).all()
    assert (right[:, 0] == high[0]).all()
    assert (bottom[:, 1] == low[1]).all()
    assert (top[:, 1] == high[1]).all()


def test_the_networks_rate_falls_to_zero_and_the_weights_rate_stays():
    experiment = Solver(HelmholtzConfig(steps=4), Job("Burgers", "uncertainty", 0, 1e-2))
    rates = []
    for step in range(4):
        rates.append([group["lr"] for group in experiment.optimizer.param_groups])
        advance(experiment, step, [], record=False)
    own = [0.025] * 4
    assert rates == [pytest.approx(pair, rel=1e-3) for pair in zip([1e-2, 8.536e-3, 5e-3, 1.464e-3], own, strict=True)]
