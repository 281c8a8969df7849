"""Many balancers in one process, several on one model, one inside another; copies and pickles."""

import copy
import pickle

import pytest
import torch

from gradnorm import Descent, GradNorm

from ..unit.networks import Net, batch, train

NAMES = ["a", "b", "c"]


def alone(names=NAMES, steps=4, **kwargs):
    net = Net()
    balancer = GradNorm(names, shared=net.last, **kwargs)
    train(net, balancer, steps)
    return net, balancer


def test_many_balancers_do_not_know_each_other():
    net = Net()
    rates = [1e-5 * (i + 1) for i in range(1000)]
    balancers = [GradNorm(NAMES, shared=net.last, update=Descent(lr)) for lr in rates]
    for balancer in balancers:
        net.zero_grad()
        balancer(net.losses(batch())).backward()
    for balancer in balancers:  # only now, so that all of them hold something at once
        balancer.step()
    for i in (0, 500, 999):
        net.zero_grad()
        single = GradNorm(NAMES, shared=net.last, update=Descent(rates[i]))
        single(net.losses(batch())).backward()
        single.step()
        assert torch.equal(single.weights, balancers[i].weights)
    assert not torch.equal(balancers[0].weights, balancers[999].weights)


def test_two_balancers_on_one_model_in_one_backward():
    """Each has its own tasks and its own W; together they are a loss."""
    net, one, two = Net(tasks=4), Net(tasks=4), Net(tasks=4)
    names = ("ab", "cd")
    Ws = [net.last, net.trunk[0].weight]
    both = [GradNorm(list(mine), shared=W) for mine, W in zip(names, Ws, strict=True)]
    singles = [GradNorm(["a", "b"], shared=one.last), GradNorm(["c", "d"], shared=two.trunk[0].weight)]
    for step in range(4):
        losses = four(net, step)
        net.zero_grad()
        sum(balancer({n: losses[n] for n in mine}) for balancer, mine in zip(both, names, strict=True)).backward()
        for balancer in both:
            balancer.step()
        for balancer, each, mine in zip(singles, (one, two), names, strict=True):
            each.zero_grad()
            own = four(each, step)
            balancer({name: own[name] for name in mine}).backward()
            balancer.step()
    for balancer, single in zip(both, singles, strict=True):
        torch.testing.assert_close(balancer.weights, single.weights)


def four(net, step):
    features = net.trunk(batch(step))
    return {
        name: 3**i * (head(features) - 1).square().mean()
        for i, (name, head) in enumerate(zip("abcd", net.heads, strict=True))
    }


def test_a_loss_that_goes_backward_twice_counts_with_what_passes_its_head():
    """What the page on the inside says of losses outside the balancer: they count for the task whose head they use."""
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    losses = net.losses(batch())
    (balancer(losses) + losses["a"]).backward()
    balancer.step()
    raw = {
        name: torch.autograd.grad(loss, net.last, retain_graph=True)[0].norm()
        for name, loss in net.losses(batch()).items()
    }
    found = balancer.log_dict()
    assert found["gradnorm/norm/a"] == pytest.approx(2 * raw["a"].item())
    assert found["gradnorm/norm/b"] == pytest.approx(raw["b"].item())


def test_a_balanced_loss_is_a_task_of_another_balancer():
    """The inner one sees its tasks as if alone: the outer weight is a factor, and divided out."""
    net = Net()
    inner, outer = GradNorm(["a", "b"], shared=net.last), GradNorm(["ab", "c"], shared=net.last)
    for step in range(3):
        losses = net.losses(batch(step))
        ab = inner({name: losses[name] for name in "ab"})
        net.zero_grad()
        rows = [torch.autograd.grad(loss, net.last, retain_graph=True)[0].norm() for loss in (ab, losses["c"])]
        own = [torch.autograd.grad(losses[name], net.last, retain_graph=True)[0].norm() for name in "ab"]
        wanted = [w * norm for w, norm in zip([*inner.weights, *outer.weights], [*own, *rows], strict=True)]
        outer({"ab": ab, "c": losses["c"]}).backward()
        inner.step()
        outer.step()
        found = [balancer.log_dict()[f"gradnorm/norm/{name}"] for balancer in (inner, outer) for name in balancer.tasks]
        torch.testing.assert_close(torch.tensor(found), torch.stack(wanted).detach())


def test_copies_and_pickles_go_on_alike():
    whole_net, whole = alone(steps=6)
    for duplicate in (copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))):
        net = Net()
        balancer = GradNorm(NAMES, shared=net.last)
        optimizer = train(net, balancer, 3)
        net, balancer, optimizer = duplicate((net, balancer, optimizer))
        train(net, balancer, 3, first=3, optimizer=optimizer)
        assert torch.equal(balancer.weights, whole.weights)
        assert torch.equal(net.last, whole_net.last)
