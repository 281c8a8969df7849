"""Gradient accumulation: k micro-batches are one batch, for the weights and for the network."""

import pytest
import torch

from gradnorm import GradNorm

from ..unit.networks import Net, batch

NAMES = ["a", "b", "c"]


def trained(backward, steps=5, **options):
    """Weights, parameters and history after steps whose backwards `backward(net, balancer, x)` does."""
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        backward(net, balancer, batch(step, size=8))
        optimizer.step()
    rows = torch.tensor([[row["loss"], row["norm"]] for row in balancer.history.rows()])
    return [balancer.weights, *(p.detach() for p in net.parameters()), rows]


def whole(net, balancer, x):
    balancer(net.losses(x)).backward()


def four(net, balancer, x):
    for part in x.chunk(4):
        (balancer(net.losses(part)) / 4).backward()


def uneven(net, balancer, x):
    for part in x.split([5, 3]):
        (balancer(net.losses(part)) * len(part) / len(x)).backward()


def one_graph(net, balancer, x):
    sum(balancer(net.losses(part)) / 2 for part in x.chunk(2)).backward()


@pytest.mark.parametrize("update", ["descent", "closed-form"])
@pytest.mark.parametrize("backward", [four, uneven, one_graph])
def test_micro_batches_are_one_batch(backward, update):
    # The start of the closed form would be that of the first micro-batch.
    options = {"update": update, "initial_weights": None}
    for a, b in zip(trained(backward, **options), trained(whole, **options), strict=True):
        torch.testing.assert_close(a, b)


def test_a_task_is_measured_over_the_micro_batches_that_have_it():
    """Loss and norm of c are those of the first half of the batch; the other tasks' are of all of it."""

    def sometimes(net, balancer, x):
        first, second = x.chunk(2)
        (balancer(net.losses(first)) / 2).backward()
        (balancer(net.losses(second) | {"c": None}) / 2).backward()

    def halves(net, balancer, x):
        losses = net.losses(x) | {"c": net.losses(x.chunk(2)[0])["c"]}
        balancer(losses).backward()

    found, wanted = (trained(way, steps=1) for way in (sometimes, halves))
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[-1], wanted[-1])


def test_a_task_that_every_micro_batch_lacks_is_absent():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, initial_losses=[1.0, 1.0, 1.0])
    for step in range(3):
        net.zero_grad()
        for part, names in zip(batch(step, size=8).chunk(2), (("a", "b"), ("a",)), strict=True):
            losses = net.losses(part)
            balancer({name: losses[name] for name in names}).backward()
        balancer.step()
    assert balancer.weights[2] == 1.0
    assert balancer.weights[0] != 1.0
    assert balancer.log_dict()["gradnorm/skipped"] == 0
