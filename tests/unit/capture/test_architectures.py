"""What `W` is found to be in networks as people build them, and that the norms measured there are those of autograd."""

import math

import pytest
import torch

from gradnorm import GradNorm

from ..networks import batch
from .architectures import ARCHITECTURES, HardSharing, SwitchLayer

ORDERS = pytest.mark.parametrize("order", [list, reversed], ids=["built in order", "built in reverse"])


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    torch.manual_seed(0)
    return ARCHITECTURES[request.param]()


def balancer_for(model):
    return GradNorm(model.tasks, model=model)


def found(balancer, model):
    """The names of `W`."""
    layer = {id(parameter) for parameter in balancer.shared}
    return {name for name, parameter in model.named_parameters() if id(parameter) in layer}


def named(losses, tasks):
    return losses if isinstance(losses, dict) else dict(zip(tasks, losses, strict=True))


def reference(model, losses, names):
    """One `torch.autograd.grad` a task, and one norm over all parameters of these names."""
    layer = [parameter for name, parameter in model.named_parameters() if name in names]
    norms = {}
    for task, loss in named(losses, model.tasks).items():
        gradients = torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True)
        norms[task] = math.hypot(*(float(gradient.norm()) for gradient in gradients if gradient is not None))
    return norms


def measured(balancer):
    """The norms of the last step, without the weights; NaN for absent tasks."""
    return {row["task"]: row["norm"] / row["weight"] for row in balancer.history.rows()[-len(balancer.tasks) :]}


@ORDERS
def test_the_layer_where_the_tasks_meet_is_found(architecture, order):
    balancer = balancer_for(architecture)
    balancer(architecture.losses(order)).backward()
    assert found(balancer, architecture) == architecture.W


@ORDERS
def test_the_norms_there_are_those_of_autograd(architecture, order):
    balancer = balancer_for(architecture)
    for _ in range(2):  # in the first step the layer is only just found
        balancer(architecture.losses(order)).backward()
        balancer.step()
        wanted = reference(architecture, architecture.losses(list), architecture.W)
        assert measured(balancer) == pytest.approx(wanted, rel=1e-4)


@ORDERS
def test_of_a_mixture_of_experts_those_count_that_the_batch_chose(order):
    torch.manual_seed(0)
    model = SwitchLayer()
    balancer = balancer_for(model)
    chosen = []
    for seed in range(8):
        x = batch(seed, size=4)
        model.zero_grad()
        balancer(model.losses(order, x)).backward()
        balancer.step()
        chosen.append(model.layer_for(x))
        assert chosen[-1] <= found(balancer, model)
        assert measured(balancer) == pytest.approx(reference(model, model.losses(list, x), chosen[-1]), rel=1e-4)
    assert len({frozenset(names) for names in chosen}) > 2, "batches must differ for this to mean anything"


def test_experts_that_micro_batches_choose_add_up_to_one_longer_gradient():
    torch.manual_seed(0)
    model = SwitchLayer()
    balancer = balancer_for(model)
    chosen = set()
    for seed in range(0, 8, 2):
        parts = [batch(seed + i, size=4) for i in range(2)]
        chosen |= {frozenset(model.layer_for(x)) for x in parts}
        model.zero_grad()
        for x in parts:
            balancer(model.losses(list, x)).backward()
        W = [p for p in balancer.shared if p.grad is not None]
        rows = {}
        for x in parts:
            for task, loss in model.losses(list, x).items():
                found = torch.autograd.grad(loss, W, retain_graph=True, materialize_grads=True)
                rows[task] = rows.get(task, 0) + torch.cat([each.flatten() for each in found]) / 2
        balancer.step()
        assert measured(balancer) == pytest.approx({task: row.norm().item() for task, row in rows.items()}, rel=1e-4)
    assert len(chosen) > 2, "batches must differ for this to mean anything"


def test_a_task_that_the_first_batch_lacks_is_waited_for():
    torch.manual_seed(0)
    model = HardSharing()
    balancer = balancer_for(model)
    losses = model.losses(list)
    balanced = balancer({"a": losses["a"]})
    balanced.backward()
    balancer.step()
    assert balanced.item() == pytest.approx(losses["a"].item())
    assert balancer.shared is None
    assert balancer.weights.tolist() == [1.0, 1.0]

    balancer(model.losses(list)).backward()
    balancer.step()
    assert found(balancer, model) == model.W
    assert measured(balancer) == pytest.approx(reference(model, model.losses(list), model.W), rel=1e-4)


@ORDERS
def test_one_task_a_batch_is_decided_when_every_task_was_seen(order):
    torch.manual_seed(0)
    model = HardSharing()
    balancer = balancer_for(model)
    turns = list(order(model.tasks))
    for step, task in enumerate(turns * 3):
        balancer({task: model.losses(list)[task]}).backward()
        balancer.step()
        if step < len(turns) - 1:
            assert balancer.shared is None
        else:
            assert found(balancer, model) == model.W
        if step >= len(turns):
            assert measured(balancer)[task] == pytest.approx(reference(model, model.losses(list), model.W)[task])
