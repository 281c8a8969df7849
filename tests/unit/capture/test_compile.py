"""`torch.compile` of the trunk, the heads or the whole model: capture is exact in each."""

import copy

import pytest
import torch

from gradnorm import GradNorm

from ..networks import Net, batch

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A compiled backward is cached on disk, with what it may do to its buffers: keep that to this test."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()


def compile_part(net, part, backend):
    if part in ("trunk", "both"):
        net.trunk = torch.compile(net.trunk, backend=backend)
    if part in ("heads", "both"):
        net.heads = torch.nn.ModuleList(torch.compile(head, backend=backend) for head in net.heads)
    if part == "model":
        net.losses = torch.compile(net.losses, backend=backend)


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", ["trunk", "heads", "both", "model"])
def test_weights_and_gradients_are_those_of_eager_mode(part, backend):
    eager, compiled = Net(), Net()
    last = [eager.last, compiled.last]
    balancers = [GradNorm(["a", "b", "c"], shared=w) for w in last]
    parameters = [list(net.parameters()) for net in (eager, compiled)]
    compile_part(compiled, part, backend)
    for step in range(3):
        for net, balancer in zip((eager, compiled), balancers, strict=True):
            balancer(dict(net.losses(batch(step)))).backward()
            balancer.step()
    torch.testing.assert_close(*(balancer.weights for balancer in balancers))
    for a, b in zip(*parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert (copy.deepcopy(balancers[1].weights) - 1).abs().min() > 0.01
