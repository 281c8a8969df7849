"""What the balancer promises around the rule: order, missing tasks, precision, accumulation, saving, reading."""

import copy
import io
import math
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
import torch

from gradnorm import ArgumentError, ClosedForm, Descent, GradNorm, GraphError, StateError
from gradnorm import functional as rule
from gradnorm._optimizer import WeightOptimizer

from .networks import Net, batch, cpu_only, train, trained

NAMES = ["a", "b", "c"]


def snapshot(balancer):
    return {name: copy.deepcopy(value) for name, value in balancer.state_dict().items()}


def adam(balancer):
    """The state of the optimizer of the weights."""
    return balancer.optimizer.state[balancer.weights]


def unchanged(balancer, before):
    after = balancer.state_dict()
    return before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in after)


# ---------------------------------------------------------------------------------------------- the rule in motion


def test_a_step_trains_with_the_old_weights_and_makes_the_new():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    losses = net.losses(batch())
    loss = balancer(losses)
    assert loss.item() == pytest.approx(sum(v.item() for v in losses.values()), rel=1e-6)
    loss.backward()
    assert balancer.weights.tolist() == [1.0, 1.0, 1.0]
    balancer.step()
    assert balancer.weights[0] > 1 > balancer.weights[2]
    assert balancer.weights.sum().item() == pytest.approx(3, rel=1e-6)


def test_the_lagging_task_gains():
    net = Net()
    balancer = GradNorm(2, shared=net.last, alpha=1.0, initial_losses=[1.0, 1.0])
    features = net.trunk(batch())
    # Equal gradients, but the second task has kept nine tenths of its loss and the first one tenth.
    y = net.heads[0](features).sum()
    balancer([y - y.detach() + 0.1, y - y.detach() + 0.9]).backward()
    balancer.step()
    assert balancer.weights[1] > 1 > balancer.weights[0]


def test_no_parameters_and_the_weights_are_a_buffer():
    _, balancer = trained()
    assert not list(balancer.parameters())
    assert any(buffer is balancer.weights for buffer in balancer.buffers())
    assert not balancer.weights.requires_grad


@pytest.mark.parametrize("form", ["mapping", "sequence", "stacked", "named tuple"])
def test_all_forms_of_losses_are_one(form):
    net, reference = Net(), Net()
    balancer, by_name = (GradNorm(NAMES, shared=n.last) for n in (net, reference))
    shape = {
        "mapping": dict,
        "sequence": lambda d: list(d.values()),
        "stacked": lambda d: torch.stack(list(d.values())),
        "named tuple": lambda d: namedtuple("Losses", [*d][::-1])(**d),  # in an order of its own
    }
    for step in range(5):
        balancer(shape[form](net.losses(batch(step)))).backward()
        by_name(reference.losses(batch(step))).backward()
        balancer.step()
        by_name.step()
    torch.testing.assert_close(balancer.weights, by_name.weights)


@pytest.mark.parametrize("number", [1e39, 1e-46, 10**400])
def test_numbers_that_float32_has_not_are_refused_before_anything_changes(number):
    for setting in ("priorities", "initial_losses", "initial_weights"):
        with pytest.raises(ArgumentError, match=f"{setting}.*must be a finite number above 0"):
            GradNorm(2, **{setting: [number, 1.0]})
    balancer = GradNorm(2)
    with pytest.raises(ArgumentError):
        balancer.priorities["0"] = number
    assert balancer.priorities == {"0": 1.0, "1": 1.0}


def test_priorities_that_were_read_before_are_those_that_were_assigned_after():
    balancer = GradNorm(["a", "b"])
    before = balancer.priorities
    balancer.priorities = {"a": 2.0, "b": 1.0}
    before["b"] = 3.0
    assert balancer.priorities == before == {"a": 2.0, "b": 3.0}


def test_after_loading_nothing_of_a_later_step_is_reported():
    net, balancer = trained(8)
    early = GradNorm(NAMES, shared=net.last)
    train(net, early, 3)
    balancer.load_state_dict(early.state_dict())
    assert balancer.history.steps == [0, 1, 2]
    assert balancer.log_dict() == {"gradnorm/skipped": 0.0}
    assert "3 steps, of which 3 are recorded" in balancer.report()


def test_the_average_of_very_many_steps_does_not_drift():
    weights = GradNorm(2, initial_weights=[1.71, 0.29])._loss_weights
    for count in [*range(1, 100), *(10**7 + i for i in range(100))]:
        weights.note_step(count)
    torch.testing.assert_close(weights.averaged(), weights.weights)


def test_sums_of_weights_as_they_were_saved_before_are_averaged():
    net, balancer = trained(8)
    state = balancer.state_dict()
    (name,) = [name for name in state if name.endswith("_weight_sums")]
    old = GradNorm(NAMES, shared=net.last)
    old.load_state_dict({**state, name: 8 * state[name]})
    for each in (old, balancer):
        train(net, each, 1)
    torch.testing.assert_close(old.time_averaged_weights(), balancer.time_averaged_weights(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.NAdam,
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.1),
        lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=0.1),
    ],
    ids=["NAdam", "SGD", "Adam"],
)
def test_the_weights_optimizer_starts_fresh(make):
    weights = torch.tensor([1.5, 0.5])
    ours = WeightOptimizer(make, weights.clone(), 0.025)
    state = ours.optimizer.state_dict()["state"][0]
    expected = {"mu_product": 1.0}
    assert {name: value.max().item() for name, value in state.items()} == {n: expected.get(n, 0.0) for n in state}


def test_settings_may_be_numbers_of_numpy():
    one, half = np.int64(1), np.float32(0.5)
    balancer = GradNorm(np.int64(2), alpha=half, every=one, initial_losses=one, initial_weights=np.array([0.5, 1.5]))
    balancer.priorities = np.array([1, 2], dtype=np.float32)
    plain = GradNorm(2, alpha=0.5, every=1, initial_losses=1, initial_weights=[0.5, 1.5])
    plain.priorities = [1, 2]
    assert repr(balancer) == repr(plain)
    assert balancer.priorities == plain.priorities


def test_in_double_precision_a_factor_is_not_rounded():
    net = Net().double()
    balancer = GradNorm(NAMES, shared=net.last)
    losses = net.losses(batch().double())
    (balancer(losses) / 3).backward()
    (alone,) = torch.autograd.grad(sum(net.losses(batch().double()).values()) / 3, [net.last])
    torch.testing.assert_close(net.last.grad, alone, rtol=1e-14, atol=0)


def test_loss_scaling_leaves_the_weights_bitwise_alone():
    nets = [Net(), Net()]
    balancers = [GradNorm(NAMES, shared=net.last) for net in nets]
    for step in range(10):
        for net, balancer, scale in zip(nets, balancers, (1, 65536 if step % 2 else 1), strict=True):
            (balancer(net.losses(batch(step))) * scale).backward()
            net.zero_grad()
            balancer.step()
    assert torch.equal(balancers[0].weights, balancers[1].weights)
    assert balancers[0].history.rows() == balancers[1].history.rows()


def test_micro_batches_equal_one_batch():
    whole, parts = Net(), Net()
    a, b = GradNorm(NAMES, shared=whole.last), GradNorm(NAMES, shared=parts.last)
    optimizers = [torch.optim.SGD(net.parameters(), lr=1e-2) for net in (whole, parts)]
    b.attach(optimizers[1])
    for step in range(5):
        x = batch(step, size=8)
        optimizers[0].zero_grad()
        a(whole.losses(x)).backward()
        optimizers[0].step()
        a.step()
        optimizers[1].zero_grad()
        for part in x.chunk(4):
            (b(parts.losses(part)) / 4).backward()
        optimizers[1].step()
    torch.testing.assert_close(a.weights, b.weights)
    torch.testing.assert_close(whole.last, parts.last)


def test_a_graph_that_was_kept_can_still_go_backward_after_a_step():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    loss = balancer(net.losses(batch()))
    loss.backward(retain_graph=True)
    before = net.last.grad.clone()
    balancer.step()
    net.zero_grad()
    loss.backward()
    assert torch.equal(net.last.grad, before)


def test_a_step_that_the_loss_scaler_skips_changes_nothing():
    net, reference = Net(), Net()
    balancer, plain = (GradNorm(NAMES, shared=n.last) for n in (net, reference))
    optimizer, other = (torch.optim.SGD(n.parameters(), lr=1e-3) for n in (net, reference))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    balancer.attach(optimizer)
    plain.attach(other)
    for step in range(6):
        optimizer.zero_grad()
        loss = scaler.scale(balancer(net.losses(batch(step))))
        if step == 2:
            loss = loss * math.inf
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
        if step != 2:
            other.zero_grad()
            plain(reference.losses(batch(step))).backward()
            other.step()
    torch.testing.assert_close(balancer.weights, plain.weights)
    assert balancer.log_dict()["gradnorm/skipped"] == 0


def test_a_fused_optimizer_that_skips_changes_nothing():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, fused=True)
    balancer.attach(optimizer)
    balancer(net.losses(batch())).backward()
    optimizer.step()
    before = balancer.weights.clone()
    optimizer.found_inf = torch.tensor(1.0)
    balancer(net.losses(batch(1))).backward()
    optimizer.step()
    assert torch.equal(balancer.weights, before)
    assert balancer.log_dict()["gradnorm/skipped"] == 0
    optimizer.found_inf = torch.tensor(0.0)
    balancer(net.losses(batch(2))).backward()
    optimizer.step()
    assert not torch.equal(balancer.weights, before)


def test_attach_can_be_undone_and_steps_once_per_optimizer_step():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    handle = balancer.attach(optimizer)
    optimizer.step()  # nothing was measured: nothing happens
    balancer(net.losses(batch())).backward()
    optimizer.step()
    assert len(balancer.history) == 1
    handle.remove()
    balancer(net.losses(batch())).backward()
    optimizer.step()
    assert len(balancer.history) == 1
    balancer.step()
    assert len(balancer.history) == 2


@pytest.mark.parametrize("mode", ["train", "eval", "freeze"])
def test_attach_and_step_is_an_error_that_says_which_to_remove(mode):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    optimizer, other = (torch.optim.SGD(net.parameters(), lr=1e-3) for _ in range(2))
    handle = balancer.attach(optimizer)
    getattr(balancer, mode)()
    balancer(net.losses(batch())).backward()
    optimizer.step()
    with pytest.raises(StateError, match=r"attached to SGD.* remove this call, or remove\(\) the handle"):
        balancer.step()
    with pytest.raises(StateError, match=r"attached to SGD already, .* remove\(\) the handle"):
        balancer.attach(other)
    handle.remove()
    balancer.step() if mode != "train" else balancer.attach(other)


def test_an_attachment_ends_with_its_optimizer():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    balancer.attach(torch.optim.SGD(net.parameters(), lr=1e-3))
    balancer(net.losses(batch())).backward()
    balancer.step()


def test_every_measures_each_kth_step_only():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, every=3)
    changed = []
    for step in range(7):
        before = balancer.weights.clone()
        balancer(net.losses(batch(step))).backward()
        balancer.step()
        changed.append(not torch.equal(before, balancer.weights))
    assert changed == [True, False, False, True, False, False, True]
    assert [row["step"] for row in balancer.history.rows()[::3]] == [0, 3, 6]


@pytest.mark.parametrize(
    ("every", "other", "measured"), [(100, 1, [0, 5, 6, 7]), (1, 3, [0, 1, 2, 3, 4, 6]), (3, 2, [0, 3, 6])]
)
def test_every_can_be_changed_and_holds_from_the_next_loss_on(every, other, measured):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, every=every)
    train(net, balancer, 5)
    with pytest.raises(ArgumentError, match="every must be"):
        balancer.every = 0
    balancer.every = other
    train(net, balancer, 3)
    assert [row["step"] for row in balancer.history.rows()[::3]] == measured


@pytest.mark.parametrize(("every", "other", "measured"), [(10, 1, [0, 2, 3]), (1, 10, [0, 1])])
@pytest.mark.parametrize("is_attached", [False, True])
def test_every_changed_within_a_step_holds_from_the_next_step_on(every, other, measured, is_attached):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    balancer = GradNorm(NAMES, shared=net.last, every=every)
    if is_attached:
        balancer.attach(optimizer)
    for step in range(4):
        balancer(net.losses(batch(step))).backward()
        if step == 1:
            balancer.every = other
        optimizer.step()
        if not is_attached:
            balancer.step()
    assert [row["step"] for row in balancer.history.rows()[::3]] == measured
    assert balancer.log_dict()["gradnorm/skipped"] == 0


def test_every_changed_in_a_step_that_is_reset_holds_at_once():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, every=10)
    train(net, balancer, 1)
    balancer(net.losses(batch(0)))
    balancer.every = 1
    balancer.reset()
    train(net, balancer, 1)
    assert [row["step"] for row in balancer.history.rows()[::3]] == [0, 1]


def test_priorities_scale_the_targets():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, alpha=0.0, priorities={"a": 2.0, "b": 1.0, "c": 0.5})
    train(net, balancer, 3)
    row = {r["task"]: r["target"] for r in balancer.history.rows()[-3:]}
    assert row["a"] == pytest.approx(2 * row["b"])
    assert row["c"] == pytest.approx(0.5 * row["b"])


@pytest.mark.parametrize("update", ["descent", "closed-form"])
@pytest.mark.parametrize("way", ["one by one", "all", "update", "sequence"])
def test_priorities_that_are_changed_are_those_that_were_given(way, update):
    _, given = trained(3, update=update, priorities=[2.0, 1.0, 0.5], initial_weights=[1.0, 1.0, 1.0])
    other = Net()
    balancer = GradNorm(NAMES, shared=other.last, update=update, initial_weights=[1.0, 1.0, 1.0])
    assert dict(balancer.priorities) == {"a": 1.0, "b": 1.0, "c": 1.0}
    if way == "one by one":
        balancer.priorities["a"] = 2
        balancer.priorities["c"] = 0.5
    elif way == "update":
        balancer.priorities.update(a=2, c=0.5)
    else:
        balancer.priorities = {"c": 0.5, "b": 1.0, "a": 2.0} if way == "all" else [2.0, 1.0, 0.5]
    train(other, balancer, 3)
    assert dict(balancer.priorities) == dict(given.priorities) == {"a": 2.0, "b": 1.0, "c": 0.5}
    assert torch.equal(balancer.weights, given.weights)
    balancer.priorities = None
    assert dict(balancer.priorities) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_priorities_follow_the_balancer():
    _, balancer = trained(2, priorities=[2.0, 1.0, 0.5])
    twin = copy.deepcopy(balancer.double())
    twin.priorities["a"] = 3
    assert twin._loss_weights._priorities.tolist() == [3.0, 1.0, 0.5]
    assert twin._loss_weights._priorities.dtype is torch.float64
    assert balancer._loss_weights._priorities.tolist() == [2.0, 1.0, 0.5]
    assert balancer.priorities["a"] == 2
    assert not any("priorit" in name for name in balancer.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(kl=1.0), "priorities holds 'kl', which is no task; the tasks are a, b, c"),
        (lambda p: p.update(a=0.0), r"priorities\['a'\] must be a finite number above 0, got 0.0"),
        (lambda p: p.update(a=math.nan), r"priorities\['a'\] must be a finite number"),
        (lambda p: p.pop("a"), r"priorities\['a'\] cannot be deleted"),
    ],
)
def test_a_bad_priority_is_refused_before_anything_changes(change, message):
    balancer = GradNorm(NAMES, priorities=[2.0, 1.0, 0.5])
    with pytest.raises(ArgumentError, match=message):
        change(balancer.priorities)
    with pytest.raises(ArgumentError, match="priorities lacks 'b'"):
        balancer.priorities = {"a": 1.0}
    assert dict(balancer.priorities) == {"a": 2.0, "b": 1.0, "c": 0.5}
    assert balancer._loss_weights._priorities.tolist() == [2.0, 1.0, 0.5]


def test_other_optimisers_of_the_weights():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update=Descent(1e-3, partial(torch.optim.SGD, momentum=0.9)))
    balancer(net.losses(batch())).backward()
    balancer.step()
    raw = torch.tensor([r["norm"] for r in balancer.history.rows()])
    target = torch.tensor([r["target"] for r in balancer.history.rows()])
    updated = torch.ones(3) - 1e-3 * rule.weight_gradients(raw, target, raw)
    torch.testing.assert_close(balancer.weights, rule.renormalize(updated, 3.0, 1e-4))


# ------------------------------------------------------------------------------------------------ where weights start


def first_gradients(net, balancer, x):
    """The norm of each task's share in the network's own first gradient."""
    losses = net.losses(x)
    raw = torch.stack([torch.autograd.grad(loss, net.last, retain_graph=True)[0].flatten() for loss in losses.values()])
    balancer(losses).backward()
    weights = torch.linalg.lstsq(raw.T, net.last.grad.flatten().unsqueeze(1)).solution.squeeze(1)
    return weights, weights * raw.norm(dim=1)


@pytest.mark.parametrize("options", [{"update": "closed-form"}, {"initial_weights": "balanced"}], ids=str)
def test_the_first_gradient_is_balanced_already(options):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, priorities=[1.0, 2.0, 1.0], **options)
    weights, norms = first_gradients(net, balancer, batch())
    torch.testing.assert_close(norms / norms[0], torch.tensor([1.0, 2.0, 1.0]), rtol=1e-3, atol=0)
    torch.testing.assert_close(weights, balancer.weights, rtol=1e-3, atol=0)
    assert balancer.weights.sum().item() == pytest.approx(3)
    assert balancer.weights.min() < 0.1


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [1.0, 1.0, 1.0]),
        ({"update": "closed-form", "initial_weights": None}, [1.0, 1.0, 1.0]),
        ({"initial_weights": {"a": 1.0, "c": 2.0, "b": 3.0}}, [0.5, 1.5, 1.0]),
        ({"initial_weights": torch.tensor([1.0, 2.0, 3.0])}, [0.5, 1.0, 1.5]),
    ],
    ids=str,
)
def test_other_starts(options, wanted):
    net = Net()
    weights, _ = first_gradients(net, GradNorm(NAMES, shared=net.last, **options), batch())
    torch.testing.assert_close(weights, torch.tensor(wanted), rtol=1e-3, atol=1e-3)


def test_given_weights_frozen_are_a_static_run():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, initial_weights=[1.0, 2.0, 3.0]).freeze()
    train(net, balancer, 3)
    torch.testing.assert_close(balancer.weights, torch.tensor([0.5, 1.0, 1.5]))


@pytest.mark.parametrize("way", ["forwards first", "one backward", "retained"])
def test_every_backward_of_the_first_step_has_the_balanced_weights(way):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update="closed-form")
    losses = [net.losses(batch(0)), net.losses(batch(0 if way == "retained" else 1))]
    rows = [
        torch.stack([torch.autograd.grad(loss, net.last, retain_graph=True)[0] for loss in each.values()])
        for each in losses
    ]
    if way == "retained":
        loss = balancer(losses[0])
        loss.backward(retain_graph=True)
        loss.backward()
    else:
        balanced = [balancer(each) for each in losses]
        if way == "one backward":
            sum(balanced).backward()
        else:
            for loss in balanced:
                loss.backward()
    wanted = sum((balancer.weights[:, None, None] * row).sum(0) for row in rows)
    torch.testing.assert_close(net.last.grad, wanted)
    weights = balancer.weights.clone()
    balancer.step()
    norms = [row["norm"] for row in balancer.history.rows()]
    summed = sum(rows) / 2  # of two losses and two factors, the mean
    assert norms == pytest.approx((weights * summed.flatten(1).norm(dim=1)).tolist(), rel=1e-4)


def test_a_loss_scale_that_overflows_puts_the_start_off():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update="closed-form")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    balancer.attach(optimizer)
    for scale in (math.inf, 1024.0):
        optimizer.zero_grad()
        (balancer(net.losses(batch())) * scale).backward()
    optimizer.step()
    norms = torch.tensor([row["norm"] for row in balancer.history.rows()])
    torch.testing.assert_close(norms, norms.mean().expand(3))


def test_a_task_that_comes_later_starts_balanced_as_well():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update="closed-form", alpha=0.0)
    for step in range(3):
        losses = net.losses(batch(step))
        balancer({"a": losses["a"], "b": losses["b"]}).backward()
        balancer.step()
    balancer(net.losses(batch(3))).backward()
    balancer.step()
    a, b, c = (row["norm"] for row in balancer.history.rows()[-3:])
    assert 1 / 3 < c / ((a + b) / 2) < 3, "a hundredfold without it"


def test_a_task_that_comes_later_leaves_the_proportion_that_the_others_have_learned():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, initial_weights="balanced", alpha=1.5)
    for step in range(20):
        losses = net.losses(batch(step))
        balancer({"a": losses["a"], "b": losses["b"]}).backward()
        balancer.step()
    before = balancer.weights.clone()
    balancer(net.losses(batch(20))).backward()
    a, b, c = balancer.weights
    torch.testing.assert_close(a / b, before[0] / before[1])
    assert c < before[2]


def test_tasks_may_come_one_per_micro_batch_in_the_first_step():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update="closed-form", alpha=0.0)
    for name in NAMES:
        balancer({name: net.losses(batch())[name]}).backward()
    balancer.step()
    norms = torch.tensor([row["norm"] for row in balancer.history.rows()])
    torch.testing.assert_close(norms, norms.mean().expand(3))
    assert balancer.weights.sum().item() == pytest.approx(3)


def test_tasks_may_come_one_per_batch_under_the_closed_form():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update="closed-form", alpha=0.0)
    for step in range(9):
        name = NAMES[step % 3]
        balancer({name: net.losses(batch())[name]}).backward()
        net.zero_grad()
        balancer.step()
    raw = torch.stack([torch.autograd.grad(v, net.last, retain_graph=True)[0] for v in net.losses(batch()).values()])
    norms = balancer.weights * raw.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand(3))


# ------------------------------------------------------------------------------------------------ L(0), freeze, eval


def test_initial_losses_given_by_name():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, initial_losses={"c": 4.0, "a": 1.0, "b": 2.0})
    losses = net.losses(batch())
    balancer(losses).backward()
    balancer.step()
    ratios = torch.stack(list(losses.values())) / torch.tensor([1.0, 2.0, 4.0])
    rates = torch.tensor([row["rate"] for row in balancer.history.rows()])
    torch.testing.assert_close(rates, (ratios / ratios.mean()).detach())


def test_initial_losses_as_a_mean_keep_the_weights_until_it_is_known():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, initial_losses=3)
    seen = []
    for step in range(3):
        assert torch.equal(balancer.weights, torch.ones(3))
        losses = net.losses(batch(step))
        seen.append(torch.stack(list(losses.values())).detach())
        balancer(losses).backward()
        balancer.step()
    assert not torch.equal(balancer.weights, torch.ones(3))
    torch.testing.assert_close(balancer.initial_losses, torch.stack(seen).mean(0))


def test_frozen_weights_stay_and_thaw():
    net, balancer = trained()
    before = balancer.weights.clone()
    balancer.freeze()
    train(net, balancer, 3)
    assert torch.equal(balancer.weights, before)
    balancer.unfreeze()
    train(net, balancer, 3)
    assert not torch.equal(balancer.weights, before)


VOID = {
    "freeze": lambda balancer: balancer.freeze().unfreeze(),
    "reset": lambda balancer: balancer.reset(),
    "load_state_dict": lambda balancer: balancer.load_state_dict(copy.deepcopy(balancer.state_dict())),
    "to": lambda balancer: balancer.to(torch.float64),
}


@pytest.mark.parametrize("at", ["layer", "features", "branches"])
@pytest.mark.parametrize("way", VOID)
def test_what_was_measured_before_is_no_part_of_the_next_step(way, at):
    net, balancer = Net(), GradNorm(NAMES, at=at)

    def losses():
        features = net.trunk(batch())
        branches = balancer.branch(features) if at == "branches" else [features] * 3
        return [10**i * (net.heads[i](branch) - 1).square().mean() for i, branch in enumerate(branches)]

    balancer(losses()).backward()
    VOID[way](balancer)
    with pytest.raises(StateError, match=r"before (a|balancer)"):
        balancer.step()
    balancer(losses()).backward()
    balancer.step()
    assert balancer.log_dict()["gradnorm/skipped"] == 0


def test_eval_and_no_grad_are_a_plain_weighted_sum():
    net, balancer = trained()
    before = snapshot(balancer)
    losses = net.losses(batch())
    wanted = (balancer.weights * torch.stack(list(losses.values()))).sum()
    balancer.eval()
    assert torch.equal(balancer(losses), wanted)
    balancer(losses).backward()
    balancer.step()
    balancer.train()
    with torch.no_grad():
        assert torch.equal(balancer(net.losses(batch())), wanted)
    assert unchanged(balancer, before)


def test_time_averaged_weights():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    with pytest.raises(StateError, match="no step has been made"):
        balancer.time_averaged_weights()
    used = []
    optimizer = None
    for step in range(4):
        used.append(balancer.weights.clone())
        optimizer = train(net, balancer, 1, step, optimizer)
    torch.testing.assert_close(balancer.time_averaged_weights(), torch.stack(used).mean(0))


# ------------------------------------------------------------------------------------------------------ missing tasks


def test_losses_of_either_sign_are_balanced_at_alpha_zero():
    for update in ("descent", "closed-form"):
        net = Net()
        balancer = GradNorm(NAMES, shared=net.last, alpha=0.0, update=update)
        for step in range(3):
            losses = net.losses(batch(step))
            balancer(
                losses | {"a": losses["a"] - 5, "b": losses["b"] * 0 + losses["b"] - losses["b"].detach()}
            ).backward()
            net.zero_grad()
            balancer.step()
        assert balancer.log_dict()["gradnorm/skipped"] == 0
        assert balancer.weights[0] > 1 > balancer.weights[2]


@cpu_only
@pytest.mark.parametrize("update", ["descent", "closed-form"])
@pytest.mark.parametrize("initial", [None, [1.0, 1.0, 1.0]])
@pytest.mark.parametrize("alpha", [0.12, 1.0, 2.0])
def test_a_loss_that_is_not_positive_keeps_the_weights_above_alpha_zero(alpha, initial, update):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, alpha=alpha, update=update, initial_losses=initial)
    train(net, balancer, 2)
    before = balancer.weights.clone()
    for number, shift in enumerate((-100.0, -200.0)):
        losses = net.losses(batch(5))
        balancer(losses | {"b": losses["b"] + shift}).backward()
        if number:
            balancer.step()
        else:
            with pytest.warns(RuntimeWarning, match="the loss of b is not positive.*need alpha=0"):
                balancer.step()
    assert torch.equal(balancer.weights, before)
    assert balancer.log_dict()["gradnorm/skipped"] == 2


@cpu_only
def test_with_alpha_zero_no_message_asks_for_alpha_zero():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, alpha=0.0)
    losses = net.losses(batch())
    balancer(losses | {"b": -1e25 * losses["b"]}).backward()
    with pytest.warns(RuntimeWarning, match=r"loss of b or its gradient norm is not finite\. Check the task itself"):
        balancer.step()
    assert balancer.report().skipped == 1
    assert "alpha=0" not in balancer.report()


def test_a_missing_task_keeps_its_weight_and_statistics():
    net, balancer = trained(3)
    before = balancer.weights.clone()
    state = adam(balancer)["exp_avg"].clone()
    losses = net.losses(batch(9))
    balancer({"a": losses["a"], "b": None, "c": losses["c"]}).backward()
    balancer.step()
    assert balancer.weights[1] == before[1]
    assert adam(balancer)["exp_avg"][1] == state[1]
    assert balancer.weights[0] != before[0]
    assert balancer.weights.sum().item() == pytest.approx(3, rel=1e-6)
    assert math.isnan(balancer.history.rows()[-2]["loss"])
    assert "gradnorm/loss/b" not in balancer.log_dict()


def test_the_tasks_present_follow_the_rule_among_themselves():
    net, pair = Net(), Net()
    three, two = GradNorm(NAMES, shared=net.last), GradNorm(["a", "c"], shared=pair.last)
    for step in range(5):
        losses, others = net.losses(batch(step)), pair.losses(batch(step))
        three({"a": losses["a"], "c": losses["c"]}).backward()
        two({"a": others["a"], "c": others["c"]}).backward()
        three.step()
        two.step()
    torch.testing.assert_close(three.weights[[0, 2]], two.weights)
    assert three.weights[1] == 1.0


def test_a_task_that_comes_late_starts_from_its_own_first_loss():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    losses = net.losses(batch())
    balancer({"a": losses["a"], "b": losses["b"]}).backward()
    balancer.step()
    late = net.losses(batch(1))
    balancer(late).backward()
    balancer.step()
    assert balancer.initial_losses[2].item() == pytest.approx(late["c"].item())
    assert balancer.log_dict()["gradnorm/skipped"] == 0


def test_one_task_alone_changes_nothing_and_is_measured():
    net, balancer = trained(3)
    before = balancer.weights.sum()
    balancer({"b": net.losses(batch())["b"]}).backward()
    balancer.step()
    assert balancer.history.rows()[-2]["rate"] == 1.0
    torch.testing.assert_close(balancer.weights.sum(), before)


# ---------------------------------------------------------------------------------------------------------- bad numbers


@cpu_only
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize("task", NAMES)
def test_a_bad_loss_skips_the_update_counts_and_warns_once(bad, when, task):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)

    def step(number, factor=1.0):
        losses = net.losses(batch(number))
        losses[task] = losses[task] * factor
        balancer(losses).backward()
        net.zero_grad()
        balancer.step()

    for number in range(when):
        step(number)
    before, state = balancer.weights.clone(), copy.deepcopy(adam(balancer))
    with pytest.warns(RuntimeWarning, match="unchanged: the loss of .*gradient norm"):
        step(when, bad)
    assert torch.equal(balancer.weights, before)
    after = adam(balancer)
    assert all(torch.equal(after[name], value) for name, value in state.items())
    step(when + 1, bad)  # no second warning: warnings are errors here
    assert balancer.log_dict()["gradnorm/skipped"] == 2
    step(when + 2)
    assert torch.isfinite(balancer.weights).all()
    assert not torch.equal(balancer.weights, before)


@cpu_only
@pytest.mark.parametrize("start", [0.0, -1.0])
def test_a_zero_or_negative_first_loss_waits_for_a_usable_one(start):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    losses = net.losses(batch())
    balancer(losses | {"a": losses["a"] * 0 + start}).backward()
    with pytest.warns(RuntimeWarning, match="need alpha=0"):
        balancer.step()
    assert torch.equal(balancer.weights, torch.ones(3))
    balancer(net.losses(batch(1))).backward()
    balancer.step()
    assert not torch.equal(balancer.weights, torch.ones(3))


@cpu_only
def test_the_first_skipped_update_leaves_no_trace_in_adam():
    net = Net()
    balancer, clean = (GradNorm(NAMES, shared=net.last) for _ in range(2))
    losses = net.losses(batch())
    balancer({**losses, "a": losses["a"] * math.nan}).backward()
    with pytest.warns(RuntimeWarning, match="unchanged"):
        balancer.step()
    net.zero_grad()
    for each in (balancer, clean):
        each(net.losses(batch(1))).backward()
        each.step()
        net.zero_grad()
    # L(0) of the other tasks is of the step before, so directions may differ; the count of steps may not.
    assert adam(balancer)["step"] == adam(clean)["step"] == 1


def test_weights_never_leave_their_range_however_wild_the_norms():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update=Descent(9e5, torch.optim.SGD))
    for step in range(5):
        balancer({name: 1e12 * loss for name, loss in net.losses(batch(step)).items()}).backward()
        net.zero_grad()
        balancer.step()
    assert torch.isfinite(balancer.weights).all()
    assert (balancer.weights > 0).all()


# ------------------------------------------------------------------------------------------------------------- saving


def roundtrip(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


SAVED = [
    {},
    {"every": 2},
    {"initial_losses": 3},
    {"update": Descent(optimizer=torch.optim.SGD)},
    {"update": "closed-form"},
    {"update": "closed-form", "every": 2},
    {"initial_weights": "balanced"},
]


@pytest.mark.parametrize("cut", [1, 4, 7])
@pytest.mark.parametrize(
    "kwargs", [{}, {"every": 2}, {"initial_losses": 3}, {"update": Descent(optimizer=torch.optim.SGD)}]
)
def test_interrupted_and_resumed_is_uninterrupted_bitwise(cut, kwargs):
    whole = Net()
    uninterrupted = GradNorm(NAMES, shared=whole.last, **kwargs)
    train(whole, uninterrupted, 10)

    net = Net()
    first = GradNorm(NAMES, shared=net.last, **kwargs)
    optimizer = train(net, first, cut)
    saved = roundtrip({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "balancer": first.state_dict()})
    net = Net(seed=99)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    second = GradNorm(NAMES, shared=net.last, **kwargs)
    for name, each in (("net", net), ("optimizer", optimizer), ("balancer", second)):
        each.load_state_dict(saved[name])
    train(net, second, 10 - cut, cut, optimizer)

    assert torch.equal(second.weights, uninterrupted.weights)
    assert torch.equal(second.time_averaged_weights(), uninterrupted.time_averaged_weights())
    for a, b in zip(net.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_state_is_tensors_of_the_same_shapes_at_every_step():
    _, fresh = trained(0)
    _, later = trained(4)
    shapes = [{name: (value.shape, value.dtype) for name, value in b.state_dict().items()} for b in (fresh, later)]
    assert shapes[0] == shapes[1]
    assert all(isinstance(value, torch.Tensor) for value in later.state_dict().values())


OPTIMISERS = [
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
    partial(torch.optim.SGD, momentum=0.9),
    partial(torch.optim.Adam, amsgrad=True),
    partial(torch.optim.RMSprop, momentum=0.9, centered=True),
]


@pytest.mark.parametrize("factory", OPTIMISERS, ids=str)
def test_the_state_that_is_made_at_once_is_the_one_that_torch_makes(factory):
    ours, theirs = torch.full((3,), 10.0), torch.full((3,), 10.0)
    wrapped = WeightOptimizer(factory, ours, 0.1)
    optimizer = factory([theirs], lr=0.1)
    for step in range(4):
        gradients = torch.tensor([1.0, -2.0, 0.5]) * (step + 1)
        if step == 1:  # an update that does not count
            wrapped.step(torch.full((3,), 7.0), lambda w: w, torch.zeros(3, dtype=torch.bool), ours.clone())
        wrapped.step(gradients, lambda w: w, torch.ones(3, dtype=torch.bool), ours.clone())
        theirs.grad = gradients
        optimizer.step()
        torch.testing.assert_close(ours, theirs)


class Centered(torch.optim.SGD):
    """An optimizer whose update of one entry depends on the others."""

    def step(self, closure=None):
        (weights,) = self.param_groups[0]["params"]
        weights.grad -= weights.grad.mean()
        return super().step(closure)


def test_a_bad_number_of_a_task_that_does_not_count_reaches_no_other():
    weights = torch.ones(3)
    counts = torch.tensor([True, False, True])
    gradients = torch.tensor([1.0, float("nan"), 2.0])
    WeightOptimizer(Centered, weights, 0.1).step(gradients, lambda w: w, counts, weights.clone())
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 0.9]))


def test_a_scheduler_s_learning_rate_is_resumed():
    def start(net):
        balancer = GradNorm(NAMES, shared=net.last)
        return balancer, torch.optim.lr_scheduler.StepLR(balancer.optimizer, step_size=2, gamma=0.3)

    def run(net, balancer, scheduler, steps):
        for step in steps:
            balancer(net.losses(batch(step))).backward()
            balancer.step()
            scheduler.step()

    net = Net()
    balancer, scheduler = start(net)
    run(net, balancer, scheduler, range(3))
    saved = roundtrip({"balancer": balancer.state_dict(), "scheduler": scheduler.state_dict()})
    again, other = start(net)
    again.load_state_dict(saved["balancer"])
    other.load_state_dict(saved["scheduler"])
    for each in ((balancer, scheduler), (again, other)):
        run(net, *each, range(3, 8))
    assert torch.equal(again.weights, balancer.weights)


@pytest.mark.parametrize("update", ["descent", "closed-form"])
def test_a_state_put_in_place_of_the_balancer_s_own_is_trained(update):
    net, other = trained(update=update)
    balancer = GradNorm(NAMES, shared=net.last, update=update)
    balancer.load_state_dict(roundtrip(other.state_dict()), assign=True)
    for each in (balancer, other):
        each(net.losses(batch(9))).backward()
        each.step()
    assert torch.equal(balancer.weights, other.weights)
    assert not torch.equal(balancer.weights, trained(update=update)[1].weights)


def test_a_state_of_other_tasks_is_refused_before_anything_changes():
    _, other = trained()
    net = Net()
    balancer = GradNorm(["a", "b", "d"], shared=net.last)
    before = snapshot(balancer)
    with pytest.raises(StateError, match="of the tasks a, b, c, this balancer's are a, b, d"):
        balancer.load_state_dict(other.state_dict())
    assert unchanged(balancer, before)


def test_a_model_that_holds_the_balancer_saves_it():
    net = Net()
    net.balancer = GradNorm(NAMES, shared=net.last)
    train(net, net.balancer, 3)
    other = Net(seed=5)
    other.balancer = GradNorm(NAMES, shared=other.last)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.balancer.weights, net.balancer.weights)
    assert {id(p) for p in net.parameters()} == {id(p) for p in Net.parameters(net)}


def test_a_deep_copy_goes_on_by_itself():
    net, balancer = trained()
    net.balancer = balancer
    twin = copy.deepcopy(net)
    assert twin.balancer.shared[0] is twin.last
    before = balancer.weights.clone()
    train(twin, twin.balancer, 3)
    assert torch.equal(balancer.weights, before)
    assert not torch.equal(twin.balancer.weights, before)


def test_half_precision_models_keep_the_rule_in_float32():
    net, balancer = trained()
    before = balancer.weights.clone()
    net.balancer = balancer
    net.to(torch.bfloat16)
    assert torch.equal(balancer.weights, before)
    balancer(net.losses(batch().to(torch.bfloat16))).backward()
    balancer.step()
    assert balancer.weights.dtype is torch.float32
    assert not torch.equal(balancer.weights, before)


def test_double_keeps_the_state_of_the_optimiser():
    net, balancer = trained()
    net.double()
    balancer.double()
    assert adam(balancer)["exp_avg"].dtype is torch.float64
    before = balancer.weights.clone()
    balancer(net.losses(batch().double())).backward()
    balancer.step()
    assert (balancer.weights - before).abs().max() > 0


# ------------------------------------------------------------------------------------------------------------ reading


def test_log_dict_and_history_tell_the_same():
    _, balancer = trained(4, cosines_every=1)
    logged = balancer.log_dict()
    last = balancer.history.rows()[-3:]
    for row in last:
        for field in ("loss", "weight", "norm", "target", "rate"):
            assert logged[f"gradnorm/{field}/{row['task']}"] == pytest.approx(row[field])
    assert -1.001 <= logged["gradnorm/cosine/a/b"] <= 1.001
    assert len(balancer.history.cosines()) == 4 * 3
    assert set(GradNorm(2).log_dict()) == {"gradnorm/skipped"}


def test_norms_and_cosines_are_those_of_autograd():
    net, balancer = trained(2, cosines_every=1)
    weights = balancer.weights.clone()
    losses = net.losses(batch(7))
    rows = torch.stack([torch.autograd.grad(v, net.last, retain_graph=True)[0].flatten() for v in losses.values()])
    balancer(losses).backward()
    balancer.step()
    logged = balancer.log_dict()
    for i, name in enumerate(NAMES):
        assert logged[f"gradnorm/norm/{name}"] == pytest.approx((weights[i] * rows[i].norm()).item(), rel=1e-5)
    wanted = torch.cosine_similarity(rows[0], rows[2], 0).item()
    assert logged["gradnorm/cosine/a/c"] == pytest.approx(wanted, rel=1e-4)


# ---------------------------------------------------------------------------------------------------------- bad input

ARGUMENTS = [
    ({"tasks": 1}, "two or more tasks, got 1"),
    ({"tasks": ["a"]}, "two or more tasks, got 1"),
    ({"tasks": "abc"}, "tasks must be names or their number, got 'abc'"),
    ({"tasks": ["a", "b", "a"]}, "tasks holds 'a' more than once"),
    ({"tasks": ["a", 3]}, "tasks must hold names, got 3"),
    ({"alpha": -0.1}, "alpha must be a finite number at least 0, got -0.1"),
    ({"alpha": math.nan}, "alpha must be a finite number"),
    ({"alpha": "1.5"}, "alpha must be a finite number"),
    ({"every": 0}, "every must be an integer of at least 1, got 0"),
    ({"every": 1.5}, "every must be an integer"),
    ({"history": -1}, "history must be an integer of at least 0"),
    ({"at": "head"}, 'at must be "layer", "features" or "branches", got \'head\''),
    ({"at": "weights"}, 'at="weights" is called at="layer"'),
    ({"priorities": {"a": 1.0, "b": 1.0}}, "priorities lacks 'c'"),
    ({"priorities": [1.0, 1.0]}, "priorities holds 2 numbers for 3 tasks"),
    ({"priorities": {"a": 1.0, "b": 1.0, "x": 1.0}}, "priorities holds 'x', which is no task"),
    ({"priorities": [1.0, 0.0, 1.0]}, r"priorities\['b'\] must be a finite number above 0, got 0.0"),
    ({"priorities": 2.0}, "priorities must be a mapping"),
    ({"initial_losses": 0}, "initial_losses must be an integer of at least 1, got 0"),
    ({"initial_losses": [1.0, -1.0, 1.0]}, r"initial_losses\['b'\] must be a finite number above 0"),
    ({"initial_losses": {"a": 1.0}}, "initial_losses lacks 'b'"),
    ({"initial_losses": 1.5}, "initial_losses must be a mapping"),
    ({"reduce": "norms"}, "reduce must be \"gradients\" or None, got 'norms'"),
    ({"update": "adam"}, 'update must be "descent", "closed-form", .* got \'adam\''),
    ({"update": ClosedForm}, "got the class ClosedForm: call it"),
    ({"initial_weights": "equal"}, "initial_weights must be \"balanced\", .* got 'equal'"),
    ({"initial_weights": [1.0, 0.0, 1.0]}, r"initial_weights\['b'\] must be a finite number above 0, got 0.0"),
]


OPTIONS = [
    (lambda: Descent(lr=0), r"lr must be a finite number above 0 and below 1e\+06, got 0"),
    (lambda: Descent(lr=-1), "lr must be"),
    (lambda: Descent(lr=1e6), "lr must be"),
    (lambda: Descent(min_weight=0), "min_weight must be a finite number above 0"),
    (lambda: Descent(min_weight=1), "min_weight must be a finite number above 0 and below 1, got 1"),
    (lambda: Descent(optimizer="adam"), "optimizer must be callable"),
    (lambda: Descent(optimizer=lambda params, lr: None), "optimizer must make a torch.optim.Optimizer, got NoneType"),
    (lambda: Descent(optimizer=torch.optim.LBFGS), "LBFGS cannot step on dense gradients without a closure"),
    (lambda: ClosedForm(smoothing=1.0), "smoothing must be a finite number at least 0 and below 1, got 1.0"),
]


@pytest.mark.parametrize(("make", "message"), OPTIONS, ids=[message for _, message in OPTIONS])
def test_bad_options_of_an_update_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(("update", "option"), [(Descent, "smoothing"), (ClosedForm, "lr"), (ClosedForm, "min_weight")])
def test_an_option_of_one_update_is_none_of_the_other(update, option):
    with pytest.raises(TypeError, match=option):
        update(**{option: 0.5})


@pytest.mark.parametrize(("kwargs", "message"), ARGUMENTS, ids=[message for _, message in ARGUMENTS])
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        GradNorm(**{"tasks": NAMES, **kwargs})


LOSSES = [
    (lambda d: d | {"x": d["a"]}, ArgumentError, "losses holds 'x', which is no task; the tasks are a, b, c"),
    (lambda d: {}, ArgumentError, "losses holds no loss"),
    (lambda d: [d["a"], d["b"]], ArgumentError, "losses holds 2 for 3 tasks"),
    (lambda d: "abc", ArgumentError, "losses must be a mapping"),
    (lambda d: torch.stack([*d.values()]).reshape(1, 3), ArgumentError, r"got shape \(1, 3\)"),
    (lambda d: torch.ones(3, dtype=torch.int64), ArgumentError, "losses must be of a floating type"),
    (lambda d: d | {"b": 0.5}, ArgumentError, "the loss of task 'b' must be a tensor, got 0.5"),
    (lambda d: d | {"b": torch.stack([d["a"], d["b"]])}, ArgumentError, r"must be a scalar, got shape \(2,\)"),
    (lambda d: d | {"b": torch.tensor(1)}, ArgumentError, "must be of a floating type, got torch.int64"),
    (lambda d: d | {"b": d["b"].detach()}, GraphError, "the loss of task 'b' has no graph"),
    (lambda d: d | {"b": torch.tensor(0.5)}, GraphError, "the loss of task 'b' has no graph"),
    (lambda d: d | {"b": d["b"].to("meta")}, ArgumentError, "different devices: 'a' on cpu, 'b' on meta"),
]


@cpu_only
@pytest.mark.parametrize(("change", "error", "message"), LOSSES, ids=[message for *_, message in LOSSES])
def test_bad_losses_are_refused_before_anything_changes(change, error, message):
    net, balancer = trained(2)
    before = snapshot(balancer)
    with pytest.raises(error, match=message):
        balancer(change(net.losses(batch())))
    assert unchanged(balancer, before)


def test_a_loss_of_shape_one_is_a_scalar():
    net, balancer = trained(2)
    losses = {name: loss.reshape(1) for name, loss in net.losses(batch()).items()}
    assert balancer(losses).shape == ()


def test_step_out_of_turn_is_an_error():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    with pytest.raises(StateError, match=r"step\(\) was called before balancer\(losses\)"):
        balancer.step()
    loss = balancer(net.losses(batch()))
    with pytest.raises(StateError, match=r"step\(\) was called before a backward"):
        balancer.step()
    loss.backward()
    balancer.step()


def test_attach_wants_an_optimizer():
    with pytest.raises(ArgumentError, match=r"optimizer must be a torch\.optim\.Optimizer, got str"):
        GradNorm(2).attach("adam")


def test_errors_are_also_the_builtin_ones():
    assert issubclass(ArgumentError, ValueError)
    assert issubclass(GraphError, RuntimeError)
    assert issubclass(StateError, RuntimeError)


def test_a_state_of_an_earlier_step_sets_the_history_back():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    train(net, balancer, 3)
    state = snapshot(balancer)
    train(net, balancer, 4)
    balancer.load_state_dict(state)
    train(net, balancer, 2)
    assert balancer.history.steps == [0, 1, 2, 3, 4]
    assert balancer.report().splitlines()[1] == "5 steps, of which 5 are recorded"
