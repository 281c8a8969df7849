"""A penalty inside a loss reads layers and applies none, whatever it is and however it is added."""

import pytest
import torch
from torch import nn

from gradnorm import GradNorm

from ..networks import Net, batch, normal

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


def test_a_loss_of_parameters_alone_beside_penalties_in_others():
    net = Net(tasks=2)
    losses = {name: loss + squares(net) for name, loss in net.losses(batch()).items()}
    balancer = GradNorm(["a", "b", "prior"], model=net)
    balancer({**losses, "prior": squares(net)}).backward()
    assert net.last in balancer.shared
    assert not {head.weight for head in net.heads} & {*balancer.shared}


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


def squares(*modules):
    return 1e-3 * sum(p.square().sum() for module in modules for p in module.parameters())


def test_ragged_features_beside_a_penalty():
    trunk, heads = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 2) for _ in range(2))
    features = trunk(torch.nested.nested_tensor([batch(size=3), batch(size=5)], layout=torch.jagged)).relu()
    losses = [head(features).values().square().mean() + squares(trunk, heads) for head in heads]
    balancer = GradNorm(2)
    balancer(losses).backward()
    assert balancer.shared == (trunk.weight,)


def test_a_weight_that_is_made_once_for_a_layer_and_a_penalty():
    """As under autocast, whose casts are kept, and `parametrize.cached`."""
    trunk, heads = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 2) for _ in range(2))
    balancer = GradNorm(2)
    with torch.autocast("cpu", torch.bfloat16):
        features = trunk(batch()).relu()
        losses = [head(features).float().square().mean() for head in heads]
        losses[0] = losses[0] + sum((w @ w.T).square().sum() for w in (trunk.weight, *(h.weight for h in heads)))
    balancer(losses).backward()
    assert balancer.shared == (trunk.weight,)


def test_where_nothing_else_is_shared_what_is_reduced_to_a_number_counts():
    users, items, others = (nn.Parameter(normal(n, 4)) for n in (10, 8, 7))
    encoder = nn.Linear(6, 4)
    prior = (items - encoder(batch(size=8))).square().mean()
    losses = [(1 - users @ items.T).square().mean() + prior, (users @ others.T).square().mean()]
    balancer = GradNorm(2)
    balancer(losses).backward()
    assert balancer.shared == (users,)
    grid, heads = nn.Parameter(normal(3, 4)), nn.ModuleList(nn.Linear(1, 2) for _ in range(2))
    balancer = GradNorm(2)
    numbers = (grid.square().sum(), grid.mean())
    balancer([head(each.view(1, 1)).square().mean() for head, each in zip(heads, numbers, strict=True)]).backward()
    assert balancer.shared == (grid,)
