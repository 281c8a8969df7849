"""Physics-informed networks: two equations, each learned from its residual and its initial or boundary values alone.

    heat      u_t = κ u_xx,  u(x, 0) = sin πx + sin 3πx,  u(0, t) = u(1, t) = 0:  losses of like scale
    Poisson   u_xx = f with the solution sin πx + sin 4πx,  u(0) = u(1) = 0:      a residual of 10,000 beside 1

Each loss comes from a forward pass of its own, at points of its own, and the residuals hold second derivatives, taken
with `create_graph=True`. `GradNorm` still measures in the one ordinary backward. As the whole network is shared, `W`
is a choice: here the last hidden layer, as it would be detected. α is the paper's for tasks of unlike kind. What counts
in the end is the distance to the true solution, which no loss sees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from _compare import Metrics, Results, compare, show
from gradnorm import GradNorm

DIFFUSIVITY, POINTS = 0.05, 128


def network(inputs: int) -> nn.Sequential:
    """Coordinates [n, inputs] → u, [n, 1]."""
    return nn.Sequential(
        nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )


def wave(k: int, x: Tensor) -> Tensor:
    """`sin kπx`."""
    return torch.sin(k * math.pi * x)


class Heat:
    """(x, t) in the unit square → u."""

    inputs = 2

    def solution(self, at: Tensor) -> Tensor:
        """Each wave dies away at a rate of its own."""
        x, t = at.split(1, dim=1)
        fading = [wave(k, x) * torch.exp(-DIFFUSIVITY * (k * math.pi) ** 2 * t) for k in (1, 3)]
        return fading[0] + fading[1]

    def losses(self, u: nn.Module) -> dict[str, Tensor]:
        """Residual, initial values, boundary values."""
        at = torch.rand(POINTS, 2, requires_grad=True)
        (slope,) = torch.autograd.grad(u(at).sum(), at, create_graph=True)
        (curvature,) = torch.autograd.grad(slope[:, 0].sum(), at, create_graph=True)
        start = torch.rand(POINTS, 2) * torch.tensor([1.0, 0.0])
        side = torch.cat([torch.randint(2, (POINTS, 1)).float(), torch.rand(POINTS, 1)], 1)
        return {
            "residual": (slope[:, 1] - DIFFUSIVITY * curvature[:, 0]).square().mean(),
            "initial": (u(start) - self.solution(start)).square().mean(),
            "boundary": u(side).square().mean(),
        }


class Poisson:
    """Points of the unit interval → u."""

    inputs = 1

    def solution(self, x: Tensor) -> Tensor:
        """Two waves."""
        return wave(1, x) + wave(4, x)

    def losses(self, u: nn.Module) -> dict[str, Tensor]:
        """Residual and boundary values."""
        x = torch.rand(POINTS, 1, requires_grad=True)
        (slope,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        wanted = -(math.pi**2) * (wave(1, x) + 16 * wave(4, x)).detach()
        return {
            "residual": (curvature - wanted).square().mean(),
            "boundary": u(torch.tensor([[0.0], [1.0]])).square().mean(),
        }


EQUATIONS = {"heat": Heat(), "Poisson": Poisson()}


@torch.no_grad()
def error(u: nn.Module, equation: Heat | Poisson) -> float:
    """`‖u − solution‖ / ‖solution‖` at random points, in percent."""
    at = torch.rand(5000, equation.inputs)
    wanted = equation.solution(at)
    return 100 * ((u(at) - wanted).norm() / wanted.norm()).item()


def run(method: str, steps: int) -> Metrics:
    """Train one network for each equation."""
    errors: Metrics = {}
    weights: Metrics = {}
    for name, equation in EQUATIONS.items():
        u = network(equation.inputs)
        optimizer = torch.optim.Adam(u.parameters(), lr=3e-3)
        update = "closed-form" if method.endswith("closed form") else "descent"
        balancer = GradNorm(equation.losses(u), shared=u[-3].weight, alpha=1.5, update=update)
        balancer.freeze(method == "equal weights")
        balancer.attach(optimizer)
        for _ in range(steps):
            loss = balancer(equation.losses(u))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors[f"{name}: error of u, %"] = error(u, equation)
        weights |= {f"{name}: weight of {t}": w for t, w in zip(balancer.tasks, balancer.weights.tolist(), strict=True)}
    return errors | weights


def main(steps: int = 1500, seeds: int = 3) -> Results:
    """Equal weights and both updates, a few seeds."""
    return compare(run, ["equal weights", "GradNorm", "GradNorm, closed form"], steps, seeds)


if __name__ == "__main__":
    show(main, __doc__)
