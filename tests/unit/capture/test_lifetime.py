"""Nothing of the graph outlives the user's own references: after backward, after an error in it, without it."""

import copy
import gc
import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn

from gradnorm import GradNorm

from ..networks import Net, batch


class Tracked(torch.autograd.Function):
    """Identity whose context (a node of the graph) and saved tensor can be watched."""

    nodes: ClassVar[list] = []
    fail = False

    @staticmethod
    def forward(ctx, x):
        saved = x.clone()
        ctx.save_for_backward(saved)
        ctx.payload = nn.Module()
        Tracked.nodes.append(weakref.ref(ctx.payload))
        return saved.clone()

    @staticmethod
    def backward(ctx, gradient):
        if Tracked.fail:
            raise ValueError("broken on purpose")
        return gradient


@pytest.fixture
def parts():
    Tracked.nodes, Tracked.fail = [], False
    net = Net()
    balancer = GradNorm(["a", "b"], shared=net.last)

    def balanced():
        features = Tracked.apply(net.trunk(batch()))
        return balancer(
            {"a": Tracked.apply(net.heads[0](features)).square().sum(), "b": net.heads[1](features).square().sum()}
        )

    yield net, balancer, balanced
    Tracked.fail = False


def alive():
    gc.collect()
    return [node for node in Tracked.nodes if node() is not None]


def broken(balanced):
    """Whether backward failed; keeps no traceback, whose frames would hold the graph."""
    try:
        balanced().backward()
    except ValueError:
        return True
    return False


def test_the_watch_sees_a_graph_that_is_held(parts):
    *_, balanced = parts
    loss = balanced()
    assert len(alive()) == 2
    del loss


def test_after_backward(parts):
    _, balancer, balanced = parts
    balanced().backward()
    assert not alive()
    balancer.step()
    assert not alive()


def test_when_backward_never_comes(parts):
    *_, balanced = parts
    balanced()
    assert not alive()


def test_after_an_error_in_backward(parts):
    _, balancer, balanced = parts
    Tracked.fail = True
    assert broken(balanced), "the backward must fail for this to mean anything"
    # The engine itself keeps what it had queued, after any backward with a nested one that failed, until its next run.
    torch.ones(1, requires_grad=True).sum().backward()
    assert not alive()
    Tracked.fail = False
    balanced().backward()
    assert balancer._measurement.sums.factors.tolist() == [1.0, 1.0], "what the broken backward measured does not count"


def test_parameters_that_are_made_for_one_step_are_not_kept():
    net, balancer, made = Net(), GradNorm(list("abc")), []
    for step in range(4):
        noise = nn.Parameter(torch.zeros(5, 6))
        made.append(weakref.ref(noise))
        balancer(net.losses(batch(step) + noise)).backward()
        balancer.step()
        del noise
    gc.collect()
    assert not [each for each in made if each() is not None]
    assert copy.deepcopy(balancer).shared_names == balancer.shared_names


@pytest.mark.parametrize("batches", [["ab"], ["a", "b"]], ids=["together", "one by one"])
def test_memory_is_flat_over_many_steps(parts, batches):
    net, *_ = parts
    balancer = GradNorm(["a", "b"], shared=net.last, update="closed-form")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def steps(count):
        for step in range(count):
            optimizer.zero_grad()
            losses = net.losses(batch())
            balancer({name: losses[name] for name in batches[step % len(batches)]}).backward()
            optimizer.step()
            balancer.step()
        gc.collect()
        return len(gc.get_objects())

    steps(20)
    before = steps(20)
    assert steps(200) - before < 50
