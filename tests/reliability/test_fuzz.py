"""Random networks in random surroundings, against autograd and Algorithm 1 written literally; and random nonsense.

`RandomNet` draws the network; a `Dress` draws what people do around one: several forwards, checkpoints, stacked losses,
factors, micro-batches, missing tasks. 40 cases run by default, 2,000 with `make test-all`.
"""

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradnorm import ArgumentError, ClosedForm, Descent, GradNorm, GradNormError

from ..oracle.graphs import RandomNet
from ..oracle.literal import Literal

FAST, ALL, CHUNK = 40, 2000, 20


class Dress(nn.Module):
    """A network's losses as some user may compute them."""

    def __init__(self, net, seed):
        super().__init__()
        self.net = net
        draw = random.Random(-seed - 1)
        self.forwards = draw.random() < 0.3  # each loss from a forward of its own, as in physics-informed networks
        self.checkpointed = draw.random() < 0.3
        self.stacked = draw.choice([None, "stack", "cat"])
        self.factor = draw.choice([1.0, 1.0, 1024.0, 0.25])
        self.parts = draw.choice([1, 1, 2])
        self.present = draw.choice([1.0, 1.0, 0.7])
        self.normed = nn.LayerNorm(net.width).double() if draw.random() < 0.3 else nn.Identity()

    def losses(self):
        if not self.forwards:
            return self.once()
        return [self.once()[task] for task in range(self.net.tasks)]

    def once(self):
        x = self.normed(self.net.x)
        losses = checkpoint(self.net.losses, x, use_reentrant=False) if self.checkpointed else self.net.losses(x)
        if self.stacked == "stack":
            return list(torch.stack(losses).unbind())
        if self.stacked == "cat":
            return list(torch.cat([loss.reshape(1, 1) for loss in losses], 1).flatten().split(1))
        return losses


def dressed(seed):
    return Dress(RandomNet(seed), seed)


def check_capture(seed):
    """Norms and gradients of three steps, with tasks missing at random."""
    model, draw = dressed(seed), random.Random(seed)
    balancer = GradNorm(model.net.tasks, shared=model.net.W).double()
    parameters = list(model.parameters())
    for _ in range(3):
        present = [draw.random() < model.present for _ in range(model.net.tasks)]
        present[draw.randrange(model.net.tasks)] = True
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(model.losses()[task], model.net.W)])
            for task in range(model.net.tasks)
        ]
        weights = balancer.weights.clone()
        total = sum(w * loss.sum() for w, loss, here in zip(weights, model.losses(), present, strict=True) if here)
        wanted = torch.autograd.grad(total * model.factor, parameters, allow_unused=True)
        model.zero_grad()
        for _ in range(model.parts):
            losses = [loss if here else None for loss, here in zip(model.losses(), present, strict=True)]
            (balancer(losses) * model.factor / model.parts).backward()
        balancer.step()
        for parameter, gradient in zip(parameters, wanted, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            if gradient is not None:
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
        found = {row["task"]: row["norm"] for row in balancer.history.rows()[-model.net.tasks :]}
        for task, (row, here) in enumerate(zip(rows, present, strict=True)):
            if here:
                assert found[str(task)] == pytest.approx((weights[task] * row.norm()).item(), rel=1e-9)
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= 1e-4 * parameter.grad / model.factor


def check_algorithm(seed):
    """Weights and parameters of six steps, all tasks present."""
    ours = dressed(seed)
    plain = copy.deepcopy(ours)
    balancer = GradNorm(ours.net.tasks, shared=ours.net.W, alpha=0.7).double()
    literal = Literal(ours.net.tasks, plain.net.W, 0.7)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=1e-4) for m in (ours, plain))
    for _ in range(6):
        optimizer.zero_grad()
        balancer(ours.losses()).backward()
        optimizer.step()
        balancer.step()
        literal.step([loss.reshape(()) for loss in plain.losses()], other)
    torch.testing.assert_close(balancer.weights, literal.w.detach(), rtol=1e-9, atol=1e-9)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def check(seed):
    try:
        check_capture(seed)
        check_algorithm(seed)
    except Exception as error:
        raise AssertionError(f"case {seed}") from error


@pytest.mark.parametrize("start", range(0, FAST, CHUNK))
def test_random_networks(start):
    for seed in range(start, start + CHUNK):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(FAST, ALL, CHUNK))
def test_more_random_networks(start):
    for seed in range(start, start + CHUNK):
        check(seed)


# ------------------------------------------------------------------------------------------------------------ nonsense

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.one_of(st.text(max_size=2), st.floats(), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=2), st.floats(), max_size=3),
    st.just(object()),
    st.just(torch.ones(2)),
)
ARGUMENTS = {
    GradNorm: ["tasks", "alpha", "update", "initial_weights", "initial_losses", "every", "priorities", "at", "reduce"],
    Descent: ["lr", "min_weight"],
    ClosedForm: ["smoothing"],
}


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([(made, name) for made, names in ARGUMENTS.items() for name in names]), anything)
def test_a_wrong_argument_is_named_or_works(argument, value):
    made, name = argument
    arguments = ({"tasks": 2} if made is GradNorm else {}) | {name: value}
    message = name
    try:
        made(**arguments)
    except ArgumentError as error:
        message = str(error)
    assert name in message, f"{name}={value!r}"


@settings(deadline=None, max_examples=300)
@given(st.one_of(anything, st.dictionaries(st.sampled_from(["a", "b", "c"]), anything, max_size=3)))
def test_wrong_losses_are_refused_and_change_nothing(losses):
    W = nn.Parameter(torch.ones(2, 2))
    balancer = GradNorm(["a", "b"], shared=W)
    for _ in range(2):
        balancer([W.sum(), W.square().sum()]).backward()
        balancer.step()
    before = {name: tensor.clone() for name, tensor in balancer.state_dict().items()}
    with pytest.raises(GradNormError):
        balancer(losses)
    assert all(torch.equal(tensor, before[name]) for name, tensor in balancer.state_dict().items())
    balancer([W.sum(), W.square().sum()]).backward()
    balancer.step()
    assert balancer.log_dict()["gradnorm/skipped"] == 0
