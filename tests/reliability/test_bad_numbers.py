"""A bad loss or gradient, in any task, at any step: the weights wait, the model gets what plain PyTorch gives it."""

import math

import pytest
import torch

from gradnorm import GradNorm

from ..unit.networks import Net, batch

NAMES = ["a", "b", "c"]
STEPS = 6
pytestmark = pytest.mark.filterwarnings("ignore:GradNorm left the loss weights unchanged")


class BadGradient(torch.autograd.Function):
    """A sound loss whose gradient is not."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


BAD = {
    "NaN": lambda loss: loss * math.nan,
    "infinite": lambda loss: loss * math.inf,
    "minus infinite": lambda loss: loss * -math.inf,
    "NaN gradient": BadGradient.apply,
}


@pytest.mark.parametrize("when", range(STEPS))
@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_number_costs_one_update_of_the_weights_and_nothing_else(bad, task, when):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    moved = []
    for step in range(STEPS):
        losses = net.losses(batch(step))
        if step == when:
            losses[task] = BAD[bad](losses[task])
        before = balancer.weights.clone()
        wanted = torch.autograd.grad(
            sum(w * loss for w, loss in zip(before, losses.values(), strict=True)),
            net.parameters(),
            retain_graph=True,
        )
        optimizer.zero_grad()
        balancer(losses).backward()
        for parameter, gradient in zip(net.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, equal_nan=True)
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)  # as a user who goes on must
        optimizer.step()
        moved.append(not torch.equal(before, balancer.weights))
    # The first step never moves weights that have no L(0) yet to compare with, unless norms differ: here they do.
    assert moved == [step != when for step in range(STEPS)]
    assert balancer.log_dict()["gradnorm/skipped"] == 1
    assert all(torch.isfinite(value).all() for value in balancer.state_dict().values())


@pytest.mark.parametrize("when", range(1, 4))
@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_loss_that_turns_zero_or_negative(bad, task, when):
    """Of a ratio that is not positive nothing can be made, and the weights wait."""
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    moved = []
    for step in range(5):
        losses = net.losses(batch(step))
        if step == when:
            losses[task] = losses[task] - losses[task].detach() + bad
        before = balancer.weights.clone()
        balancer(losses).backward()
        balancer.step()
        moved.append(not torch.equal(before, balancer.weights))
    assert moved == [step != when for step in range(5)]
    assert balancer.log_dict()["gradnorm/skipped"] == 1
    assert torch.isfinite(balancer.weights).all()
    assert (balancer.weights > 0).all()
