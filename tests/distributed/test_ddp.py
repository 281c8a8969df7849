"""Under DDP each process measures its own part of the batch, exactly, and gradient synchronisation stays as it is."""

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

    def forward(self, x):
        features = self.net.trunk(x)
        return [head(features) for head in self.net.heads]


def losses(outputs):
    return [10**i * (y - 1).square().mean() for i, y in enumerate(outputs)]


def worker(rank, kwargs):
    model = Outputs()
    w = model.net.last
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
def test_capture_is_exact_and_gradients_are_still_averaged(mode, tmp_path):
    ranks = launch(worker, tmp_path, MODES[mode])
    for steps in zip(*ranks, strict=True):
        for local, measured, *_ in steps:
            torch.testing.assert_close(measured, local)
        mean = sum((weights.unsqueeze(1) * local).sum(0) for local, _, weights, _ in steps) / len(steps)
        for *_, gradient in steps:
            torch.testing.assert_close(gradient.flatten(), mean)
    assert not torch.equal(ranks[0][0][0], ranks[1][0][0]), "the processes must see different data"
