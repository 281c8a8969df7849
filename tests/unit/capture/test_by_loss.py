"""Where tasks meet at every step of a recurrence, measuring costs a backward per task, and is exact."""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from gradnorm import GradNorm, GraphError

STEPS = 24


class Unrolled(nn.Module):
    """A recurrence with heads at every step; `is_interleaved` runs them before the next step."""

    def __init__(self, is_interleaved):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.heads = nn.GRUCell(4, 8), nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
        self.is_interleaved = is_interleaved
        self.nodes = []
        self.first, self.hook, self.around_heads = nn.Identity(), None, nullcontext

    def losses(self, steps=STEPS):
        h, states, outputs, self.nodes = torch.zeros(3, 8), [], [], []
        for x in torch.randn(steps, 3, 4, generator=torch.Generator(torch.get_default_device()).manual_seed(1)):
            h = self.cell(self.first(x), h)
            if self.hook is not None:
                h.register_hook(self.hook)
            self.nodes.append(h.grad_fn)
            states.append(h)
            if self.is_interleaved:
                outputs.append([head(h) for head in self.heads])
        with self.around_heads():
            outputs = outputs or [[head(h) for head in self.heads] for h in states]
        return [sum((each[i] - i - 1).square().mean() for each in outputs) / steps for i in range(2)]


ORDERS = pytest.mark.parametrize("is_interleaved", [True, False])


@ORDERS
@pytest.mark.parametrize("steps", [2, STEPS])
@pytest.mark.parametrize("update", ["descent", "closed-form"])
def test_the_gradients_are_those_of_each_loss_and_the_model_s_that_of_their_sum(is_interleaved, steps, update):
    net = Unrolled(is_interleaved)
    balancer = GradNorm(2, model=net, update=update)
    for step in range(3):
        weights, losses = balancer.weights.clone(), net.losses(steps)
        w = [net.cell.weight_ih, net.cell.weight_hh]
        norms = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, w, retain_graph=True)]).norm() for loss in losses
        ]
        net.zero_grad()
        balancer(losses).backward()
        weights = balancer.weights if step == 0 and update == "closed-form" else weights
        found = {name: p.grad.clone() for name, p in net.named_parameters()}
        net.zero_grad()
        balancer.step()
        rows = balancer.history.rows()[-2:]
        expected = torch.stack(norms)
        torch.testing.assert_close(torch.tensor([row["norm"] / row["weight"] for row in rows]), expected)
        sum(row["weight"] * loss for row, loss in zip(rows, net.losses(steps), strict=True)).backward()
        torch.testing.assert_close(found, {name: p.grad for name, p in net.named_parameters()})


@ORDERS
def test_no_function_runs_more_often_than_once_per_backward(is_interleaved):
    net = Unrolled(is_interleaved)
    balancer = GradNorm(2, model=net)
    for most in (1 + 2 + 2 + 2, 1 + 2):  # the first step looks and checks, too
        loss = balancer(net.losses())
        runs = Counter()
        for i, node in enumerate(net.nodes):
            node.register_hook(lambda *_, i=i, runs=runs: runs.update([i]))
        loss.backward(retain_graph=True)
        assert max(runs.values()) == most
        loss.backward()
        balancer.step()
        assert max(runs.values()) == most + 1 + 2


class Once(torch.autograd.Function):
    """Counts how often it runs backward."""

    runs = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        Once.runs += 1
        return gradients[0]


def test_functions_that_may_run_only_once_run_once():
    net = Unrolled(is_interleaved=False)
    net.heads = nn.ModuleList(nn.Sequential(head, _Applied()) for head in net.heads)
    Once.runs = 0
    GradNorm(2, shared=net.cell, initial_weights=None)(net.losses()).backward()
    assert Once.runs == 2 * STEPS


class _Applied(nn.Module):
    def forward(self, x):
        return Once.apply(x)


@pytest.mark.parametrize("where", ["named", "detected"])
def test_a_function_that_is_not_torch_s_before_w_changes_nothing(where):
    net = Unrolled(is_interleaved=True)
    net.first = nn.Sequential(nn.Linear(4, 4), _Applied())
    balancer = GradNorm(2, model=net, update="closed-form", shared=net.cell if where == "named" else None)
    balancer(net.losses()).backward()
    assert {*balancer.shared} >= {net.cell.weight_ih, net.cell.weight_hh}


@pytest.mark.parametrize(("hook", "said"), [(torch.rand_like, "another one"), (torch.sign, "do not add up")])
def test_what_is_not_linear_or_random_between_heads_and_w_is_told_in_the_first_step(hook, said):
    net = Unrolled(is_interleaved=True)
    net.hook = hook
    with pytest.raises(GraphError, match=said):
        GradNorm(2, shared=net.cell)(net.losses()).backward()


def test_saved_tensors_that_can_be_unpacked_only_once():
    net, saved = Unrolled(is_interleaved=False), []

    def pack(tensor):
        saved.append(tensor)
        return len(saved) - 1

    def unpack(i):
        tensor, saved[i] = saved[i], None
        assert tensor is not None
        return tensor

    net.around_heads = lambda: torch.autograd.graph.saved_tensors_hooks(pack, unpack)
    GradNorm(2, shared=net.cell, initial_weights=None, check=False)(net.losses()).backward()


def test_a_loss_outside_the_balancer_is_not_counted():
    net = Unrolled(is_interleaved=False)
    norms = []
    for outside in (0.0, 10.0):
        balancer = GradNorm(2, model=net)
        losses = net.losses()
        (balancer(losses) + outside * losses[0]).backward()
        balancer.step()
        norms.append([row["norm"] for row in balancer.history.rows()])
    assert norms[0] == norms[1]


def test_micro_batches_and_a_second_backward_add_up():
    net = Unrolled(is_interleaved=True)
    balancer = GradNorm(2, model=net)
    loss = balancer(net.losses())
    (loss / 2).backward(retain_graph=True)
    once = balancer._measurement.sums.entries.clone()
    (loss / 2).backward()
    torch.testing.assert_close(balancer._measurement.sums.entries, 2 * once)
