"""A penalty inside a loss reads layers and applies none, whatever it is and however it is added."""

import pytest
import torch
from torch import nn

from gradnorm import GradNorm

from ..networks import Net, batch

PENALTIES = {
    "squares": lambda p: sum(each.square().sum() for each in p),
    "absolute values": lambda p: sum(each.abs().sum() for each in p),
    "norms": lambda p: sum(each.norm() for each in p),
    "norm of norms": lambda p: torch.stack([each.norm() for each in p]).norm(),
    "foreach": lambda p: torch.stack(torch._foreach_norm(list(p))).sum(),
    "one vector": lambda p: nn.utils.parameters_to_vector(p).square().sum(),
    "distance": lambda p: sum((3 * (each - 0.1) ** 2).sum() for each in p),
    "orthogonality": lambda p: sum(
        (each @ each.T - torch.eye(len(each))).square().sum() for each in p if each.ndim > 1
    ),
}
ADDED = {
    "to one": lambda losses, penalty: [losses[0] + penalty(), *losses[1:]],
    "to all": lambda losses, penalty: [loss + penalty() for loss in losses],
    "once to all": lambda losses, penalty: [loss + once for once in [penalty()] for loss in losses],
}


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("added", ADDED.values(), ids=ADDED)
def test_heads_that_are_penalized_are_not_taken_for_the_shared_layer(penalty, added):
    torch.manual_seed(0)
    net = Net()
    balancer = GradNorm(3, model=net)
    losses = added(list(net.losses(batch()).values()), lambda: 1e-3 * penalty(list(net.parameters())))
    rows = [torch.autograd.grad(loss, net.last, retain_graph=True)[0] for loss in losses]
    balancer(losses).backward()
    assert balancer.shared == (net.last,)
    torch.testing.assert_close(balancer._measurement.sums.entries, torch.stack([row.flatten() for row in rows]))


def test_a_layer_without_bias_that_nothing_follows_is_no_penalty():
    net, layer = Net(), nn.Linear(6, 8, bias=False)
    balancer = GradNorm(3, model=net)
    balancer(
        [loss + layer(batch()).square().mean() + layer.weight.norm() for loss in net.losses(batch()).values()]
    ).backward()
    assert set(balancer.shared) == {net.last, layer.weight}


def test_a_loss_of_parameters_alone_reaches_them():
    net = Net()
    balancer = GradNorm(["fit", "prior"], model=net)
    for _ in range(2):
        balancer([net.losses(batch())["a"], sum(p.square().sum() for p in net.parameters())]).backward()
        balancer.step()
    assert balancer.shared == (net.trunk[0].weight, net.last, net.heads[0].weight)


@pytest.mark.parametrize(
    "parametrize", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_a_norm_that_a_weight_is_divided_by_is_no_penalty(parametrize):
    net = Net()
    parametrize(net.trunk[0])
    parametrize(net.heads[1])
    balancer = GradNorm(["a", "b", "c"], model=net)
    losses = net.losses(batch())
    losses["a"] = losses["a"] + 1e-3 * sum(p.square().sum() for p in net.parameters())
    balancer(losses).backward()
    assert balancer.shared == (net.last,)
