"""Heads whose outputs are concatenated before the losses: in the graph every loss then reaches every head."""

import pytest
import torch
from torch import nn

from gradnorm import GradNorm

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


def test_a_head_that_is_taken_for_the_last_shared_layer_is_told_once():
    net = Concatenated()
    balancer = GradNorm(["near", "far"])
    balancer(net.losses(batch())).backward()
    with pytest.warns(RuntimeWarning, match=r"gradient of near is exactly zero.* shape \(1, 8\).* with shared="):
        balancer.step()
    balancer(net.losses(batch(1))).backward()
    balancer.step()  # warnings are errors here


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
