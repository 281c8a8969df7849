"""Under DDP each process measures its own part of the batch, exactly, and gradient synchronization stays as it is."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradnorm import GradNorm

from ..unit.networks import Net, batch
from .launch import launch

MODES = {
    "plain": {},
    "static graph": {"static_graph": True},
    "unused parameters": {"find_unused_parameters": True},
    "bucket view": {"gradient_as_bucket_view": True},
}


class Outputs(nn.Module):
    """The network as DDP wraps it: features stay inside, one output a task comes out."""

    def __init__(self):
        super().__init__()
        self.net = Net()
        self.w = self.net.last

    def forward(self, x):
        features = self.net.trunk(x)
        return [head(features) for head in self.net.heads]


class Unrolled(nn.Module):
    """Heads at every step of a recurrence, where a backward of each loss is run."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.heads = nn.RNNCell(6, 8), nn.ModuleList(nn.Linear(8, 2) for _ in range(3))
        self.w = self.cell.weight_hh

    def forward(self, x):
        h, outputs = x.new_zeros(len(x), 8), []
        for _ in range(20):
            h = self.cell(x, h)
            outputs.append([head(h) for head in self.heads])
        return [torch.stack(each) for each in zip(*outputs, strict=True)]


def losses(outputs):
    return [10**i * (y - 1).square().mean() for i, y in enumerate(outputs)]


def worker(rank, network, kwargs):
    model = network()
    w = model.w
    wrapped = DistributedDataParallel(model, **kwargs)
    balancer = GradNorm(3, shared=w)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = []
    for step in range(3):
        x = batch(10 * step + rank)
        local = torch.stack([torch.autograd.grad(loss, w, retain_graph=True)[0].flatten() for loss in losses(model(x))])
        optimizer.zero_grad()
        weights = balancer.weights.clone()
        balancer(losses(wrapped(x))).backward()
        measured = balancer._measurement.sums.entries / weights.unsqueeze(1)
        found.append((local, measured, weights, w.grad.clone()))
        balancer.step()
    return found


@pytest.mark.filterwarnings("ignore:.*find_unused_parameters.*")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", [Outputs, Unrolled])
def test_capture_is_exact_and_gradients_are_still_averaged(network, mode, tmp_path):
    ranks = launch(worker, tmp_path, network, MODES[mode])
    for steps in zip(*ranks, strict=True):
        for local, measured, *_ in steps:
            torch.testing.assert_close(measured, local)
        mean = sum((weights.unsqueeze(1) * local).sum(0) for local, _, weights, _ in steps) / len(steps)
        for *_, gradient in steps:
            torch.testing.assert_close(gradient.flatten(), mean)
    assert not torch.equal(ranks[0][0][0], ranks[1][0][0]), "the processes must see different data"


class Balanced(Net):
    """The network with its balancer, as one module."""

    def __init__(self, seed=0):
        super().__init__(seed=seed)
        self.balancer = GradNorm(["a", "b", "c"], every=2)
        self.reads = 0
        take_over = self.balancer._take_over

        def counted():
            self.reads += 1
            take_over()

        self.balancer._take_over = counted

    def forward(self, x):
        return self.balancer(self.losses(x))


def loaded_by_one(rank, first):
    def steps(model, first, last):
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(first, last):
            optimizer.zero_grad()
            wrapped(batch(10 * step + rank)).backward()
            optimizer.step()
            model.balancer.step()
        return {name: value.clone() for name, value in model.state_dict().items()}

    whole = Balanced()
    state = steps(whole, 0, first)
    wanted = steps(whole, first, first + 4)
    model = Balanced(seed=9)
    if rank == 0:
        model.load_state_dict(state)
    return steps(model, first, first + 4), wanted, model.reads


def test_a_state_that_one_rank_loaded_is_every_rank_s_and_is_read_once(tmp_path):
    for found, wanted, reads in launch(loaded_by_one, tmp_path, 3):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        assert reads == 1, "a step that reads synchronizes with the device"


class Forking(Outputs):
    """As `Outputs`, with a branch of the features for each head; the balancer is no part of it."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return [head(f) for head, f in zip(self.net.heads, self.branch(self.net.trunk(x)), strict=True)]


def forking(rank, kwargs):
    balancer = GradNorm(3, at="branches", update="closed-form")
    model = Forking(balancer.branch)
    wrapped = DistributedDataParallel(model, **kwargs)
    found = []
    for step in range(3):
        model.zero_grad()
        balancer(losses(wrapped(batch(10 * step + rank)))).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        balancer.step()
    return found


@pytest.mark.filterwarnings("ignore:.*find_unused_parameters.*")
@pytest.mark.parametrize("mode", MODES)
def test_a_look_at_branches_leaves_the_averaging_of_gradients_as_it_is(mode, tmp_path):
    one, other = launch(forking, tmp_path, MODES[mode])
    torch.testing.assert_close(one, other, rtol=0, atol=0)
