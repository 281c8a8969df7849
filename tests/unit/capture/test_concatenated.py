"""Heads whose outputs are concatenated before the losses: in the graph every loss then reaches every head."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from gradnorm import GradNorm
from gradnorm.capture._first_look import PATIENCE

from ..networks import batch


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.heads = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 1) for _ in range(2))

    def losses(self, x):
        features = self.trunk(x).tanh()
        near, far = (torch.cat([head(features) for head in self.heads], 1) - 1).unbind(1)
        return [near.square().mean(), far.square().mean()]


def test_heads_whose_outputs_are_joined_are_looked_through():
    net = Concatenated()
    balancer = GradNorm(["near", "far"])
    balancer(net.losses(batch())).backward()
    assert balancer.shared == (net.trunk.weight,)


class Mixed(Concatenated):
    """Joined outputs that pass through one more operation, so that in the graph every task reaches every head."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(2))

    def losses(self, x):
        features = self.trunk(x).tanh()
        near, far = (torch.cat([head(features) for head in self.heads], 1) - 1).split(2, 1)
        return [near.square().mean(), far.square().mean()]


@pytest.mark.parametrize("update", ["descent", "closed-form"])
def test_layers_at_which_tasks_share_no_entry_are_heads(update):
    net = Mixed()
    balancer = GradNorm(["near", "far"], update=update)
    losses = net.losses(batch())
    wanted = [torch.autograd.grad(loss, net.trunk.weight, retain_graph=True)[0].norm().item() for loss in losses]
    balancer(losses).backward()
    balancer.step()
    assert balancer.shared == (net.trunk.weight,)
    assert [row["norm"] / row["weight"] for row in balancer.history.rows()] == pytest.approx(wanted)


def test_where_nothing_lies_before_the_heads_they_stay_the_layer():
    """A later graph shows a layer before them, which is none of what was settled in the first."""
    torch.manual_seed(0)
    first, heads = nn.Linear(6, 6), [nn.Linear(6, 4) for _ in range(2)]
    balancer = GradNorm(["near", "far"])
    for step, x in enumerate([batch(), batch(1), first(batch(2))]):
        near, far = (torch.cat([head(x) for head in heads], 1).tanh() - 1).split(4, 1)
        losses = [near.square().mean(), far.square().mean()]
        wanted = [torch.autograd.grad(v, h.weight, retain_graph=True) for v, h in zip(losses, heads, strict=True)]
        balancer(losses).backward()
        balancer.step()
        assert {id(part) for part in balancer.shared} == {id(head.weight) for head in heads}, step
        rows = balancer.history.rows()[-2:]
        norms = [gradient.norm().item() for (gradient,) in wanted]
        assert [row["norm"] / row["weight"] for row in rows] == pytest.approx(norms)


def test_a_head_that_starts_at_zero_is_told_and_does_not_move_the_layer():
    net = Concatenated()
    nn.init.zeros_(net.heads[0].weight)
    balancer = GradNorm(["near", "far"])
    with pytest.warns(RuntimeWarning, match="gradient of near is exactly zero at every layer"):
        balancer(net.losses(batch())).backward()
    balancer.step()
    assert balancer.shared == (net.trunk.weight,)
    balancer(net.losses(batch(1))).backward()
    balancer.step()  # warnings are errors here


class Output(nn.Module):
    """One output layer, a row per task."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.output = nn.Linear(6, 8), nn.Linear(8, 3)

    def losses(self, x):
        return [(column - 1).square().mean() for column in self.output(self.trunk(x).tanh()).unbind(1)]


ALONE_AT_FIRST = {
    "a loss times zero": [[[1, 0, 0]], [[1, 1, 1]]],
    "one task a batch": [[[1, 0, 0]], [[0, 1, 0]], [[0, 0, 1]], [[1, 0, 0]], [[0, 1, 0]]],
    "one task a micro-batch": [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]] * 2,
}


@pytest.mark.parametrize("times_zero", [True, False])
@pytest.mark.parametrize("steps", ALONE_AT_FIRST.values(), ids=ALONE_AT_FIRST)
@pytest.mark.filterwarnings("ignore:the gradient of .* is exactly zero:RuntimeWarning")
def test_a_head_is_told_once_two_tasks_have_had_a_gradient(steps, times_zero):
    net = Output()
    balancer = GradNorm(3, model=net, update="closed-form", alpha=0)
    for step in steps:
        net.zero_grad()
        for present in step:
            losses = zip(net.losses(batch()), present, strict=True)
            balancer([loss * there if there or times_zero else None for loss, there in losses]).backward()
        balancer.step()
    assert balancer.shared_names == ("trunk.weight",)
    assert balancer._measurement.layer.is_confirmed


def test_a_task_that_stays_alone_does_not_keep_the_layer_undecided():
    net = Output()
    balancer = GradNorm(3, model=net, alpha=0)
    for step in range(PATIENCE + 2):
        first, *others = net.losses(batch())
        balanced = balancer([first, *(0 * loss for loss in others)])
        with nullcontext() if step else pytest.warns(RuntimeWarning, match="exactly zero at every layer"):
            balanced.backward()  # told once: warnings are errors here
        balancer.step()
        assert balancer._measurement.layer.is_confirmed == (step >= PATIENCE)


def test_named_the_layer_is_measured_exactly():
    net = Concatenated()
    balancer = GradNorm(["near", "far"], shared=net.trunk)
    wanted = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*net.trunk.parameters()], retain_graph=True)]).norm()
        for loss in net.losses(batch())
    ]
    balancer(net.losses(batch())).backward()
    balancer.step()
    assert [row["norm"] for row in balancer.history.rows()] == pytest.approx([norm.item() for norm in wanted])
