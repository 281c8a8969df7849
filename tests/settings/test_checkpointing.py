"""Activation checkpointing: the weights and the network of a plain run, and what it costs."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gradnorm import GradNorm
from gradnorm.capture import _products

from ..unit.networks import Net, batch, train

FORWARDS = {
    "whole trunk": lambda trunk, x: checkpoint(trunk, x, use_reentrant=False),
    "two segments": lambda trunk, x: checkpoint_sequential(trunk, 2, x, use_reentrant=False),
    "before W only": lambda trunk, x: trunk[2:](checkpoint(trunk[:2], x, use_reentrant=False)),
}


class Saving(Net):
    """`Net` that forgets activations."""

    def __init__(self, forward):
        super().__init__()
        self.way = forward

    def losses(self, x):
        features = self.way(self.trunk, x)
        return {name: 10**i * (head(features) - 1).square().mean() for i, (name, head) in enumerate(self.named())}


@pytest.mark.parametrize("update", ["descent", "closed-form"])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("way", FORWARDS)
def test_the_same_weights_and_parameters(way, named, update):
    plain, net = Net(), Saving(FORWARDS[way])
    found = []
    for each in (plain, net):
        balancer = GradNorm(["a", "b", "c"], shared=each.last if named else None, update=update)
        train(each, balancer, 4)
        assert balancer.shared[0] is each.last
        found.append([balancer.weights, *(p.detach() for p in each.parameters())])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(("at", "most", "runs"), [("layer", 0, 2 + 3), ("layer", 2**17, 2 + 1), ("features", 0, 2)])
def test_the_segment_that_holds_w_runs_once_more_for_each_product(at, most, runs, monkeypatch):
    monkeypatch.setattr(_products, "MOST_BATCHED", {"cpu": most, "cuda": most})
    monkeypatch.setattr(_products, "FEWEST_BATCHED", 2)
    net, count = Saving(FORWARDS["whole trunk"]), []

    class Counted(nn.Module):
        def forward(self, x):
            count.append(1)
            return x.clone()

    net.trunk[1] = nn.Sequential(Counted(), net.trunk[1])
    balancer = GradNorm(["a", "b", "c"], shared=net.last, at=at, check=False)
    train(net, balancer, 1)
    assert len(count) == runs


class Reentrant(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return checkpoint(self.head, x, use_reentrant=True)


def test_reentrant_checkpoints_in_the_heads_are_exact():
    """They run before the tasks meet, where autograd's ban on gradients of single tensors does not reach."""
    plain, net = Net(), Net()
    net.heads = nn.ModuleList(Reentrant(head) for head in net.heads)
    found = []
    for each in (plain, net):
        balancer = GradNorm(["a", "b", "c"], shared=each.last)
        train(each, balancer, 4)
        found.append([balancer.weights, *(p.detach() for p in each.parameters())])
    assert all(map(torch.equal, *found))


def test_heads_that_cannot_run_twice_start_from_equal_weights_and_say_so():
    net = Net()
    net.heads = nn.ModuleList(Reentrant(head) for head in net.heads)
    balancer = GradNorm(["a", "b", "c"], shared=net.last, update="closed-form")
    loss = balancer(net.losses(batch()))
    with pytest.warns(RuntimeWarning, match="weights start from ones.*use_reentrant=False"):
        loss.backward()
    balancer.step()
    assert [row["weight"] for row in balancer.history.rows()] == [1.0, 1.0, 1.0]
    assert balancer.weights[0] > 1 > balancer.weights[2]
    balancer(net.losses(batch())).backward()  # which does not try again
    balancer.step()
