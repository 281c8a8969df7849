"""A task that meets no other before `W` is measured by its loss alone, whatever else runs backward beside it."""

import gc
import itertools

import pytest
import torch

from gradnorm import Descent, GradNorm
from gradnorm.capture import _alone

from ..networks import Net, batch

ONE_BY_ONE = [{"a"}, {"b"}, {"c"}]


def alone(net, losses):
    """The norm of each loss's own gradient at `W`."""
    found = {name: torch.autograd.grad(loss, net.last, retain_graph=True)[0] for name, loss in losses.items()}
    return {name: gradient.norm().item() for name, gradient in found.items()}


def raw_norms(balancer):
    """Of the tasks that the last step measured."""
    last = max(row["step"] for row in balancer.history.rows())
    rows = [row for row in balancer.history.rows() if row["step"] == last and row["norm"] == row["norm"]]
    return {row["task"]: row["norm"] / row["weight"] for row in rows}


@pytest.fixture
def net():
    net = Net()
    net.outside = torch.nn.Linear(8, 3)
    return net


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("update", ["descent", "closed-form"])
def test_one_task_per_batch_with_a_loss_outside(net, named, update):
    balancer = GradNorm(list("abc"), shared=net.last if named else None, alpha=0.0, update=update)
    for step, present in enumerate([{"a", "b", "c"}, *2 * ONE_BY_ONE]):
        net.zero_grad()
        features = net.trunk(batch(step))
        outside = (net.outside(features) - 9).square().sum()
        losses = {name: (head(features) - 1).square().mean() for name, head in net.named() if name in present}
        expected = alone(net, losses)
        (balancer(losses) + outside).backward()
        balancer.step()
        assert raw_norms(balancer) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("at", ["layer", "features"])
def test_losses_of_the_same_features_in_several_calls(net, at):
    balancer = GradNorm(list("abc"), shared=net.last, alpha=0.0, at=at, initial_weights=None)
    for step in range(3):
        net.zero_grad()
        losses = net.losses(batch(step))
        expected = alone(net, losses)
        sum(balancer({name: loss}) for name, loss in losses.items()).backward()
        balancer.step()
        assert raw_norms(balancer) == pytest.approx(expected, rel=1e-4)


def test_a_second_loss_on_the_output_of_a_forward_of_its_own(net):
    balancer = GradNorm(list("ab"), shared=net.last, alpha=0.0)
    for step in range(3):
        net.zero_grad()
        near, far = (head(net.trunk(batch(2 * step + i))) for i, head in enumerate(list(net.heads)[:2]))
        losses = {"a": near.square().mean(), "b": far.square().mean()}
        expected = alone(net, losses)
        (balancer(losses) + 5 * (near - 1).abs().sum()).backward()
        balancer.step()
        assert raw_norms(balancer) == pytest.approx(expected, rel=1e-4)


def test_a_loss_outside_that_comes_later_is_found_before_long(net, monkeypatch):
    monkeypatch.setattr(_alone, "RECHECK", 4)
    balancer = GradNorm(list("abc"), shared=net.last, alpha=0.0)
    for step in range(12):
        net.zero_grad()
        x = batch(step)
        features = net.trunk(x)
        losses = {"a": (net.heads[0](features) - 1).square().mean()}
        expected = alone(net, losses)
        outside = (step > 1) * (net.outside(features) - 9).square().sum()
        (balancer(losses) + outside).backward()
        balancer.step()
        if step < 2 or step > 4:
            assert raw_norms(balancer) == pytest.approx(expected, rel=1e-4)


def test_what_is_taken_away_is_not_told(net, monkeypatch):
    """Also where a task came later, so that the looks at all tasks and the first task's checks fall apart."""
    monkeypatch.setattr(_alone, "RECHECK", 4)
    balancer = GradNorm(list("abc"), shared=net.last, alpha=0.0, update="closed-form")
    for step in range(16):
        net.zero_grad()
        outputs = [head(net.trunk(batch(3 * step + i))) for i, head in enumerate(net.heads)]
        tasks = "abc" if step > 1 else "ab"
        losses = {task: output.square().mean() for task, output in zip(tasks, outputs, strict=False)}
        (balancer(losses) + (step > 4) * 5 * (outputs[0] - 1).abs().sum()).backward()
        balancer.step()
    assert balancer._measurement.outsiders._were_found


@pytest.mark.parametrize("every", [1, 2])
def test_a_backward_that_could_not_tell_does_not_count(net, every):
    """It overflows, as a loss scaler's first ones; then a loss outside comes in all or every second backward."""
    balancer = GradNorm(list("abc"), shared=net.last, alpha=0.0, update="closed-form", initial_weights=None)
    balancer(net.losses(batch())).backward()
    balancer.step()
    for step in range(1, 230):
        net.zero_grad()
        features = net.trunk(batch(step))
        losses = {"a": (net.heads[0](features) - 1).square().mean()}
        expected = alone(net, losses)
        outside = (step % every == 0) * (net.outside(features) - 9).square().sum()
        ((balancer(losses) + outside) * (1e38 if step == 1 else 1.0)).backward()
        if step == 1:
            balancer.reset()
            continue
        balancer.step()
        if every == 1 or step > 2 * _alone.RECHECK:
            assert raw_norms(balancer) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("read", ["autocast", "transposed"])
def test_tasks_that_share_what_is_made_of_w_alone(net, read):
    w, heads = net.last, list(net.heads)
    balancer = GradNorm(list("ab"), shared=w, alpha=0.0, initial_weights=None)
    for step in range(3):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=read == "autocast"):
            t = w.t()
            features = [
                net.trunk[0](batch(2 * step + i)).tanh() @ t if read == "transposed" else net.trunk(batch(2 * step + i))
                for i in range(2)
            ]
            losses = {n: (heads[i](features[i]) - 1).float().square().mean() for i, n in enumerate("ab")}
            outside = (net.outside(features[0]) - 9).float().square().sum()
        expected = alone(net, losses)
        (balancer(losses) + outside).backward()
        balancer.step()
        assert raw_norms(balancer) == pytest.approx(expected, rel=2e-2)


def test_a_loss_that_reads_w_itself_and_what_is_made_of_it_counts_once(net):
    w = net.last
    balancer = GradNorm(list("ab"), shared=w, alpha=0.0, initial_weights=None)
    for step in range(2):
        net.zero_grad()
        t = w.t()
        near, far = (head(net.trunk[0](batch(step)).tanh() @ t) for head in list(net.heads)[:2])
        losses = {"a": near.square().mean() + w.square().mean(), "b": far.square().mean()}
        expected = alone(net, losses)
        balancer(losses).backward()
        balancer.step()
        assert raw_norms(balancer) == pytest.approx(expected, rel=1e-4)


def test_a_part_of_what_another_task_reads_as_a_whole_counts_once():
    torch.manual_seed(0)
    W = torch.nn.Parameter(torch.randn(3, 6))
    balancer = GradNorm(list("abc"), shared=W, alpha=0.0, initial_weights=None)
    for step in range(3):
        W.grad = None
        whole = torch.cat([batch(2 * step) @ W.T, batch(2 * step + 1) @ W.T])
        part = whole[:5]
        losses = {
            "a": (part - 1).square().mean() + 0.1 * W.square().sum(),
            "b": (part + 2).square().mean(),
            "c": whole.square().mean(),
        }
        (expected,) = torch.autograd.grad(losses["a"], W, retain_graph=True)
        balancer(losses).backward()
        balancer.step()
        assert raw_norms(balancer)["a"] == pytest.approx(expected.norm().item(), rel=1e-4)


def test_what_is_not_torchs_own_may_lie_elsewhere(net):
    class Foreign(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    balancer = GradNorm(list("abc"), shared=net.last, alpha=0.0)
    for step in range(2):
        net.zero_grad()
        features = net.trunk[2](Foreign.apply(net.trunk[0](batch(step))))
        losses = {"a": (net.heads[0](features) - 1).square().mean()}
        expected = alone(net, losses)
        (balancer(losses) + (net.outside(features) - 9).square().sum()).backward()
        balancer.step()
        assert raw_norms(balancer) == pytest.approx(expected, rel=1e-4)


def test_no_gradient_is_kept_with_the_loss():
    trunk, heads = torch.nn.Linear(64, 96), torch.nn.ModuleList(torch.nn.Linear(96, 1) for _ in range(4))
    balancer = GradNorm(4, shared=trunk.weight, initial_weights=None)
    loss = balancer([head(trunk(torch.randn(2, 64))).square().mean() for head in heads])
    loss.backward()
    balancer.step()
    gc.collect()
    sizes = [each.shape for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    assert sum(shape == trunk.weight.shape for shape in sizes) <= 2  # W and its gradient


def test_saved_tensors_that_unpack_once_need_no_check(net):
    kept, keys = {}, itertools.count()

    def pack(tensor):
        kept[key := next(keys)] = tensor
        return key

    balancer = GradNorm(list("abc"), shared=net.last, check=False)
    with torch.autograd.graph.saved_tensors_hooks(pack, kept.pop):
        balancer({"a": net.heads[0](net.trunk(batch())).square().mean()}).backward()
    balancer.step()
    assert raw_norms(balancer)["a"] == pytest.approx(net.last.grad.norm().item(), rel=1e-4)


@pytest.mark.parametrize(("check", "first"), [(True, 2), (False, 1)])
def test_where_nothing_is_outside_the_head_runs_twice_in_the_first_backward_only(net, check, first):
    balancer = GradNorm(list("abc"), shared=net.last, check=check)
    for step in range(3):
        seen = []
        output = net.heads[0](net.trunk(batch(step)))
        output.register_hook(seen.append)
        balancer({"a": output.square().mean()}).backward()
        balancer.step()
        assert len(seen) == (first if step == 0 else 1)


def test_a_function_that_can_run_only_once_is_left_alone(net):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.has_run = False
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            assert not ctx.has_run
            ctx.has_run = True
            return gradient

    balancer = GradNorm(list("abc"), shared=net.last, update=Descent())
    for name, head in net.named():
        net.zero_grad()
        losses = {name: Once.apply(head(net.trunk(batch()))).square().mean()}
        balancer(losses).backward()
        balancer.step()
        weight = max(row["weight"] for row in balancer.history.rows()[-3:] if row["task"] == name)
        assert raw_norms(balancer)[name] == pytest.approx(net.last.grad.norm().item() / weight, rel=1e-4)
