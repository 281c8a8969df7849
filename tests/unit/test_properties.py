"""Properties of whole runs, over scales and numbers of tasks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradnorm import GradNorm


def run(tasks, scales, steps=4, alpha=1.5, order=None):
    torch.manual_seed(0)
    trunk, heads = nn.Linear(5, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(tasks))
    order = list(range(tasks)) if order is None else order
    balancer = GradNorm([str(i) for i in order], shared=trunk.weight, alpha=alpha)
    x = torch.randn(3, 5)
    for _ in range(steps):
        features = trunk(x).tanh()
        losses = {str(i): scales[i] * (heads[i](features) - 1).square().mean() for i in order}
        balancer(losses).backward()
        with torch.no_grad():
            for parameter in [*trunk.parameters(), *heads.parameters()]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad / max(scales) * 0.01)
                    parameter.grad = None
        balancer.step()
    return balancer


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 64).flatmap(lambda n: st.lists(st.floats(1e-10, 1e10), min_size=n, max_size=n)))
def test_weights_are_finite_positive_and_sum_to_t(scales):
    weights = run(len(scales), scales).weights
    assert torch.isfinite(weights).all()
    assert (weights > 0).all()
    assert weights.sum().item() == pytest.approx(len(scales), rel=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-3, 1e10))  # below that Adam's epsilon, 1e-8, is no longer small beside the norms
def test_one_factor_on_all_losses_changes_no_weight(factor):
    torch.testing.assert_close(
        run(3, [1.0, 10.0, 0.1]).weights, run(3, [factor, 10 * factor, 0.1 * factor]).weights, rtol=1e-3, atol=1e-3
    )


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(4)))
def test_the_order_of_the_tasks_does_not_matter(order):
    scales = [1.0, 10.0, 0.1, 3.0]
    torch.testing.assert_close(run(4, scales, order=order).weights, run(4, scales).weights[list(order)])


def test_the_larger_task_is_weighed_down_at_alpha_zero():
    weights = run(2, [1.0, 100.0], steps=20, alpha=0.0).weights
    assert weights[0] > 1.4 > 0.6 > weights[1]
