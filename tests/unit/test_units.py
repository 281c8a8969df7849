"""The unit of a loss does not matter under the closed form: real scans, one of two losses multiplied by 10^k."""

import functools

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from gradnorm import GradNorm


@functools.cache
def scans():
    """Pixels, digits and the standardized amount of ink, shuffled; the last 597 scans are for validation."""
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(pixels / 16, dtype=torch.float32)[order]
    ink = x.sum(1, keepdim=True)
    return x, torch.tensor(digits)[order], (ink - ink[:1200].mean()) / ink[:1200].std()


@functools.cache
def trained(update, alpha, k, steps):
    """Accuracy in % and R² on the validation scans, with the loss of ink multiplied by 10^k."""
    x, digits, ink = scans()
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    heads = nn.ModuleList([nn.Linear(64, 10), nn.Linear(64, 1)])
    optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()], lr=1e-3)
    balancer = GradNorm(["class", "ink"], shared=trunk[2].weight, alpha=alpha, update=update)
    rows = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(1200, (64,), generator=rows)
        features = trunk(x[batch])
        losses = [F.cross_entropy(heads[0](features), digits[batch]), F.mse_loss(heads[1](features), ink[batch])]
        optimizer.zero_grad()
        balancer([losses[0], 10.0**k * losses[1]]).backward()
        optimizer.step()
        balancer.step()
    with torch.no_grad():
        features = trunk(x[1200:])
        right = (heads[0](features).argmax(1) == digits[1200:]).float().mean()
        unexplained = F.mse_loss(heads[1](features), ink[1200:]) / ink[1200:].var(correction=0)
    return 100 * right.item(), 1 - unexplained.item()


def check(alpha, k, steps):
    accuracy, explained = trained("closed-form", alpha, k, steps)
    wanted, other = trained("closed-form", alpha, 0, steps)
    assert accuracy == pytest.approx(wanted, abs=2)
    assert explained == pytest.approx(other, abs=0.02)


@pytest.mark.parametrize("k", [-2, 4])
def test_a_unit_changes_nothing_in_a_short_training(k):
    check(0.5, k, 600)


def test_it_does_under_descent():
    accuracy, explained = trained("descent", 0.5, 6, 600)
    assert explained < trained("closed-form", 0.5, 6, 600)[1] - 0.3, (accuracy, explained)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("k", [k for k in range(-2, 7) if k])
def test_a_unit_changes_nothing(k, alpha):
    check(alpha, k, 2000)
