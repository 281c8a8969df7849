"""Which backwards make a step: gradients that are moved away, dropped steps, partial backwards, nested balancers."""

import warnings

import pytest
import torch

from gradnorm import Descent, GradNorm

from ..networks import Net, batch

NAMES = ["a", "b", "c"]


def norms_of(balancer):
    last = balancer.history.rows()[-len(balancer.tasks) :]
    return [row["norm"] / row["weight"] for row in last]


def expected(net, numbers):
    """[T], the norms of the gradients of the mean losses over several batches."""
    rows = []
    for number in numbers:
        losses = net.losses(batch(number)).values()
        rows.append(torch.stack([torch.autograd.grad(v, net.last, retain_graph=True)[0].flatten() for v in losses]))
    return (sum(rows) / len(rows)).norm(dim=1).tolist()


def by_hook(net, balancer, numbers):
    """As Megatron's `main_grad` and ZeRO: a hook takes each gradient within the backward."""
    main = {}

    def take(parameter):
        main[parameter] = main.get(parameter, 0) + parameter.grad
        parameter.grad = None

    handles = [parameter.register_post_accumulate_grad_hook(take) for parameter in net.parameters()]
    for number in numbers:
        (balancer(net.losses(batch(number))) / len(numbers)).backward()
    for handle in handles:
        handle.remove()
    return main


def by_grad(net, balancer, numbers):
    """A loop over `torch.autograd.grad`, which leaves nothing in `.grad`."""
    main = {}
    for number in numbers:
        loss = balancer(net.losses(batch(number))) / len(numbers)
        for parameter, gradient in zip(net.parameters(), torch.autograd.grad(loss, net.parameters()), strict=True):
            main[parameter] = main.get(parameter, 0) + gradient
    return main


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("way", [by_hook, by_grad])
@pytest.mark.parametrize("micro", [1, 3])
def test_gradients_that_are_taken_away_in_the_backward_count_all_the_same(way, micro, attached):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, alpha=0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    if attached:
        balancer.attach(optimizer)
    for step in range(4):
        numbers = range(micro * step, micro * (step + 1))
        wanted = expected(net, numbers)
        main = way(net, balancer, numbers)
        for parameter, gradient in main.items():
            parameter.grad = gradient
        optimizer.step()
        if not attached:
            balancer.step()
        optimizer.zero_grad()
        assert norms_of(balancer) == pytest.approx(wanted, rel=1e-4)


def moved_by_hand(net, balancer, numbers):
    main = {}
    for number in numbers:
        (balancer(net.losses(batch(number))) / len(numbers)).backward()
        for parameter in net.parameters():
            main[parameter] = main.get(parameter, 0) + parameter.grad
            parameter.grad = None
    return main


def test_gradients_that_are_moved_between_backwards_are_refused():
    """They look as if a step was dropped: the weights stay, and somebody says why."""
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    for step in range(2):
        for parameter, gradient in moved_by_hand(net, balancer, range(3)).items():
            parameter.grad = gradient
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            optimizer.step()
        optimizer.zero_grad()
        assert [w.filename for w in said] == ([__file__] if step == 0 else [])
        assert all("cleared between two backwards" in str(w.message) for w in said)
    assert balancer.weights.tolist() == [1.0, 1.0, 1.0]
    assert balancer.log_dict() == {"gradnorm/skipped": 2.0}


def test_a_dropped_step_costs_an_update_unless_it_is_said():
    for says in (True, False):
        net = Net()
        balancer = GradNorm(NAMES, shared=net.last)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
        balancer.attach(optimizer)
        for step in range(4):
            optimizer.zero_grad()
            balancer(net.losses(batch(step))).backward()
            if step == 2:  # a spike
                if says:
                    balancer.reset()
                continue
            wanted = expected(net, [step])
            with warnings.catch_warnings():
                warnings.simplefilter("error" if says else "ignore")
                optimizer.step()
        assert balancer.log_dict()["gradnorm/skipped"] == (not says)
        if says:
            assert norms_of(balancer) == pytest.approx(wanted, rel=1e-4)


def test_a_loss_scaler_may_have_skipped_a_step_whose_gradients_at_w_are_finite():
    """The overflow was elsewhere: nothing was dropped, and nobody need be told."""
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5)
    balancer.attach(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        wanted = expected(net, [step])
        (balancer(net.losses(batch(step))) * 1024).backward()
        if step != 1:
            optimizer.step()
            assert norms_of(balancer) == pytest.approx(wanted, rel=1e-4)
    assert balancer.log_dict()["gradnorm/skipped"] == 0


def test_a_loss_that_runs_backward_again_has_dropped_nothing():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    for step in range(3):
        wanted = expected(net, [step])
        net.zero_grad()
        loss = balancer(net.losses(batch(step)))
        loss.backward(retain_graph=True)
        net.zero_grad()
        loss.backward()
        balancer.step()
        assert norms_of(balancer) == pytest.approx(wanted, rel=1e-4)
    assert balancer.log_dict()["gradnorm/skipped"] == 0


def test_gradients_are_cleared_where_the_optimizer_has_them():
    """A part of `W` that another optimizer trains, and clears at its own time, says nothing of this one's steps."""
    net = Net()
    balancer = GradNorm(NAMES, shared=[net.last, net.trunk[0].weight])
    optimizer = torch.optim.SGD([net.last, *net.heads.parameters()], lr=1e-2)
    balancer.attach(optimizer)
    for step in range(3):
        optimizer.zero_grad()
        balancer(net.losses(batch(step))).backward()
        assert balancer._measurement.sums.counts.tolist() == [1.0, 1.0, 1.0]
        if step == 0:
            optimizer.step()


def test_of_several_evaluations_within_one_step_the_last_counts():
    """As in SAM: the parameters move between the two, which tells them from micro-batches that were moved away."""
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    balancer.attach(optimizer)
    for step in range(3):
        optimizer.zero_grad()
        balancer(net.losses(batch(step))).backward()
        ascent = [0.1 * parameter.grad for parameter in net.parameters()]
        with torch.no_grad():
            torch._foreach_add_(list(net.parameters()), ascent)
        wanted = expected(net, [step])
        optimizer.zero_grad()
        balancer(net.losses(batch(step))).backward()
        with torch.no_grad():
            torch._foreach_sub_(list(net.parameters()), ascent)
        optimizer.step()
        assert norms_of(balancer) == pytest.approx(wanted, rel=1e-4)


def test_a_step_that_turns_out_to_have_several_backwards_is_not_used():
    """One backward per step was the habit, so that only norms were kept: the first other step is lost, no further."""
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, alpha=0.0)
    lost = []
    for step, micro in enumerate([1, 1, 3, 3, 1]):
        before = balancer.weights.clone()
        wanted = expected(net, range(step, step + micro))
        net.zero_grad()
        for number in range(step, step + micro):
            balancer(net.losses(batch(number))).backward()
        balancer.step()
        lost.append(torch.equal(before, balancer.weights))
        if not lost[-1]:
            assert norms_of(balancer) == pytest.approx(wanted, rel=1e-4)
    assert lost == [False, False, True, False, False]
    assert balancer.log_dict()["gradnorm/skipped"] == 1


def test_rows_are_kept_only_where_they_are_needed():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    widths = []
    for step in range(3):
        net.zero_grad()
        balancer(net.losses(batch(step))).backward()
        widths.append(balancer._measurement.sums.entries.shape[1])
        balancer.step()
    assert widths == [net.last.numel(), 1, 1]


@pytest.mark.parametrize("of", ["a head", "all heads"])
def test_a_partial_backward_does_not_count(of):
    """As in a penalty on one head's gradient: nothing reaches `W`, and the backward that follows is measured."""
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    for step in range(3):
        net.zero_grad()
        wanted = expected(net, [step])
        heads = list(net.heads.parameters())
        loss = balancer(net.losses(batch(step)))
        torch.autograd.grad(loss, heads[:1] if of == "a head" else heads, retain_graph=True)
        loss.backward()
        balancer.step()
        assert norms_of(balancer) == pytest.approx(wanted, rel=1e-4)


def test_single_losses_that_run_backward_after_a_partial_backward_do_not_count():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    losses = net.losses(batch())
    loss = balancer(losses)
    torch.autograd.grad(loss, list(net.heads.parameters())[:1], retain_graph=True)
    for each in losses.values():
        each.backward(retain_graph=True)
    assert balancer._measurement.sums is None


@pytest.mark.parametrize("update", ["descent", "closed-form"])
@pytest.mark.parametrize("named", [True, False])
def test_a_balancer_inside_another_measures_as_if_alone(named, update):
    """The outer one's first look and products run through the inner one's graph."""
    net = Net()
    kwargs = {"shared": net.last if named else None, "update": update}
    inner, outer = GradNorm(["a", "b"], **kwargs), GradNorm(["ab", "c"], **kwargs)
    for step in range(3):
        net.zero_grad()
        wanted = expected(net, [step])
        losses = net.losses(batch(step))
        ab = inner({name: losses[name] for name in "ab"})
        outer({"ab": ab, "c": losses["c"]}).backward()
        inner.step()
        outer.step()
        assert norms_of(inner) == pytest.approx(wanted[:2], rel=1e-4)
        assert norms_of(outer)[1] == pytest.approx(wanted[2], rel=1e-4)


def test_complex_parameters_have_real_norms_and_cosines():
    torch.manual_seed(0)
    first = torch.nn.Parameter(torch.randn(6, 8))
    last = torch.nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))
    heads = [torch.randn(8, 1, dtype=torch.complex64) for _ in range(2)]
    balancer = GradNorm(2, cosines_every=1)
    for step in range(3):
        features = (batch(step) @ first).to(torch.complex64) @ last
        losses = [(features @ head).abs().square().mean() for head in heads]
        rows = [torch.view_as_real(torch.autograd.grad(v, last, retain_graph=True)[0]).flatten() for v in losses]
        first.grad = last.grad = None
        balancer(losses).backward()
        balancer.step()
        assert balancer.shared[0] is last
        assert norms_of(balancer) == pytest.approx([row.norm().item() for row in rows], rel=1e-4)
        wanted = torch.cosine_similarity(*rows, dim=0).item()
        assert balancer.log_dict()["gradnorm/cosine/0/1"] == pytest.approx(wanted, rel=1e-3)
    assert "nan" not in balancer.report()


def test_a_first_backward_that_fails_leaves_nothing_behind():
    """Whether gradients stay in `.grad` is not known yet; as where a batch size is found by running out of memory."""
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last)
    x = batch(0).requires_grad_()
    x.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        balancer(net.losses(x)).backward()
    net.zero_grad()
    wanted = expected(net, [1])
    balancer(net.losses(batch(1))).backward()
    balancer.step()
    assert norms_of(balancer) == pytest.approx(wanted, rel=1e-4)


def test_settings_that_change_between_backward_and_step():
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, cosines_every=100)
    for step in range(3):
        net.zero_grad()
        balancer(net.losses(batch(step))).backward()
        if step == 1:
            balancer.cosines_every = 1
        if step == 2:
            balancer.weights = [1.0, 1.0, 4.0]
        balancer.step()
    assert {row["step"] for row in balancer.history.cosines()} == {0}
    assert balancer.weights.tolist() == pytest.approx([0.5, 0.5, 2.0])
    assert balancer.log_dict()["gradnorm/skipped"] == 1


@pytest.mark.parametrize("tasks", [2, 6])
def test_a_first_step_measures_to_the_last_bit_what_later_ones_do(tasks):
    """Checked, whole rows or norms, with or without inner products: a run that was resumed is the same run."""
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(40, 300), torch.nn.ModuleList(torch.nn.Linear(300, 1) for _ in range(tasks))
    old, new = (GradNorm(tasks, shared=trunk.weight, cosines_every=every) for every in (3, 1))
    rows = []
    for step in range(5):
        x = torch.randn(8, 40)
        if step > 2:
            new.load_state_dict(old.state_dict())
        for balancer in (old, new) if step > 2 else (old,):
            trunk.zero_grad()
            features = trunk(x).tanh()
            balancer([(head(features) - 1).square().mean() for head in heads]).backward()
            balancer.step()
            rows.append(balancer.history.rows()[-tasks:])
    assert rows[3] == rows[4]
    assert rows[5] == rows[6]


@pytest.mark.parametrize("assigned", [False, True])
def test_a_loss_that_runs_backward_late_is_measured_by_the_weights_of_its_forward(assigned):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, alpha=0.0, update=Descent(0.3))
    pending = balancer(net.losses(batch(0)))
    for number in range(3):
        following = balancer(net.losses(batch(number + 1)))
        if assigned:
            balancer.weights = [0.1, 0.2, 2.7]
        net.zero_grad()
        pending.backward()
        balancer.step()
        assert norms_of(balancer) == pytest.approx(expected(net, [number]), rel=1e-4)
        pending = following


@pytest.mark.parametrize("attached", [False, True])
def test_a_layer_that_changes_drops_no_measurement(attached):
    """With gradients accumulated, as where a stage of training freezes the last shared layer."""
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    balancer = GradNorm(NAMES)
    if attached:
        balancer.attach(optimizer)
    for step in range(6):
        net.trunk[2].requires_grad_(step < 3)
        optimizer.zero_grad()
        for number in range(2):
            (balancer(net.losses(batch(2 * step + number))) / 2).backward()
        optimizer.step()
        if not attached:
            balancer.step()
    assert balancer.log_dict()["gradnorm/skipped"] == 0
    assert len(balancer.history) == 6
