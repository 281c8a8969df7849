"""Branches: norms measured where the network forks its features, in eager mode and inside one compiled graph."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from gradnorm import ArgumentError, GradNorm, StateError

from ..networks import Net, batch

NAMES = ["a", "b", "c"]


class Forked(Net):
    """`Net`, whose heads each read a branch of the features."""

    def __init__(self, balancer):
        super().__init__()
        self.balancer = balancer

    def losses(self, x):
        branches = self.balancer.branch(self.trunk(x))
        return {
            name: 10**i * (head(f) - 1).square().mean()
            for i, ((name, head), f) in enumerate(zip(self.named(), branches, strict=True))
        }

    def balanced(self, x):
        return self.balancer(self.losses(x))


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()


def pair(**kwargs):
    """A network with branches, and the same one measured at the features by hooks."""
    plain = Net()
    reference = GradNorm(NAMES, shared=plain.last, at="features", **kwargs)
    return Forked(GradNorm(NAMES, at="branches", **kwargs)), plain, reference


def train(net, balancer, loss_of, steps=4, micro=1, scale=1.0):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        for part in batch(step, 8).chunk(micro):
            (loss_of(part) * scale / micro).backward()
        for p in net.parameters():
            p.grad /= scale
        optimizer.step()
        balancer.step()


def same(net, plain, reference):
    torch.testing.assert_close(net.balancer.weights, reference.weights)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(net.balancer.history.rows(), reference.history.rows(), strict=True):
        assert a.pop("task") == b.pop("task")
        assert a == pytest.approx(b, rel=1e-4)
    assert (reference.weights - 1).abs().max() > 0.01


@pytest.mark.parametrize("kwargs", [{}, {"every": 2}, {"alpha": 0.5}])
@pytest.mark.parametrize(("micro", "scale"), [(1, 1.0), (2, 1.0), (1, 1024.0)])
def test_branches_measure_what_hooks_at_the_features_do(kwargs, micro, scale):
    net, plain, reference = pair(**kwargs)
    train(net, net.balancer, net.balanced, micro=micro, scale=scale)
    train(plain, reference, lambda x: reference(plain.losses(x)), micro=micro, scale=scale)
    same(net, plain, reference)


BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inside", ["network", "network and loss"])
def test_one_compiled_graph_measures_the_same(inside, backend):
    net, plain, reference = pair()
    if inside == "network":
        compiled = torch.compile(net.losses, fullgraph=True, backend=backend)
        train(net, net.balancer, lambda x: net.balancer(compiled(x)))
    else:
        train(net, net.balancer, torch.compile(net.balanced, fullgraph=True, backend=backend))
    train(plain, reference, lambda x: reference(plain.losses(x)))
    same(net, plain, reference)


@pytest.mark.filterwarnings("default")
def test_one_graph_serves_all_steps():
    net, *_ = pair()
    counter = CompileCounterWithBackend("aot_eager")
    train(net, net.balancer, torch.compile(net.balanced, fullgraph=True, backend=counter), steps=6)
    assert counter.frame_count == 1


def test_a_missing_task_is_left_out():
    net, *_ = pair()
    train(net, net.balancer, net.balanced, steps=1)
    before = net.balancer.weights.clone()
    losses = net.losses(batch(7))
    net.balancer({"a": losses["a"], "c": losses["c"]}).backward()
    net.balancer.step()
    assert net.balancer.weights[1] == before[1]
    assert net.balancer.weights[0] != before[0]


def test_several_branches_count_as_one_vector():
    plain = Net()
    balancer = GradNorm(2, at="branches")
    features = plain.trunk(batch())
    first, second = balancer.branch(features), balancer.branch(2 * features)
    losses = [(plain.heads[i](first[i]) + plain.heads[i](second[i])).square().mean() for i in range(2)]
    wanted = [
        torch.cat(torch.autograd.grad(losses[i], [first[i], second[i]], retain_graph=True)).norm().item()
        for i in range(2)
    ]
    balancer._measurement.clear()
    balancer(losses).backward()
    balancer.step()
    assert [row["norm"] for row in balancer.history.rows()] == pytest.approx(wanted, rel=1e-5)


def test_a_skipped_step_is_forgotten():
    net, plain, reference = pair(initial_losses=[1.0, 1.0, 1.0])
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    net.balancer.attach(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        net.balanced(batch(step)).backward()
        if step % 2:
            optimizer.step()
        else:
            net.balancer.reset()
    other = torch.optim.SGD(plain.parameters(), lr=1e-2)
    for step in (1, 3):
        other.zero_grad()
        reference(plain.losses(batch(step))).backward()
        other.step()
        reference.step()
    same(net, plain, reference)


def test_half_precision_features():
    net, plain, reference = pair()
    for each in (net, plain):
        each.to(torch.bfloat16)
    for step in range(3):
        x = batch(step).to(torch.bfloat16)
        net.balanced(x).backward()
        net.balancer.step()
        reference(plain.losses(x)).backward()
        reference.step()
    torch.testing.assert_close(net.balancer.weights, reference.weights, rtol=0.01, atol=0.01)


def test_double_precision_is_measured_in_double_precision():
    net, *_ = pair()
    net.double()
    features = net.trunk(batch().double())
    branches = net.balancer.branch(features)
    losses = [(head(branch) - 1).square().mean() for head, branch in zip(net.heads, branches, strict=True)]
    wanted = [torch.autograd.grad(loss, features, retain_graph=True)[0].norm().item() for loss in losses]
    net.balancer(losses).backward()
    net.balancer.step()
    assert [row["norm"] for row in net.balancer.history.rows()] == pytest.approx(wanted, rel=1e-12)


def test_what_cannot_be_measured_is_refused():
    net = Net()
    with pytest.raises(ArgumentError, match=r"shared names W, but at=\"branches\""):
        GradNorm(2, shared=net.last, at="branches")
    with pytest.raises(StateError, match=r'make the balancer with at="branches"'):
        GradNorm(2).branch(batch())
    balancer = GradNorm(NAMES, at="branches")
    balancer(net.losses(batch())).backward()
    with pytest.raises(StateError, match=r"which the network never called"):
        balancer.step()


def test_complex_features():
    torch.manual_seed(0)
    heads = [torch.randn(8, 1, dtype=torch.complex64) for _ in range(2)]
    balancer = GradNorm(2, at="branches")
    features = torch.randn(6, 8, dtype=torch.complex64, requires_grad=True)
    branches = balancer.branch(features)
    losses = [(branch @ head).abs().square().mean() for branch, head in zip(branches, heads, strict=True)]
    wanted = [torch.autograd.grad(loss, features, retain_graph=True)[0].norm().item() for loss in losses]
    balancer(losses).backward()
    balancer.step()
    assert [row["norm"] for row in balancer.history.rows()] == pytest.approx(wanted)


def test_a_backward_that_leaves_out_the_probe_does_not_count():
    """As `backward(inputs=parameters)` does: nothing was measured, which must not look like gradients of zero."""
    net, plain, reference = pair(cosines_every=1)
    loss = net.balanced(batch())
    loss.backward(inputs=list(net.parameters()), retain_graph=True)
    with pytest.raises(StateError, match="before a backward"):
        net.balancer.step()
    net.zero_grad()
    loss.backward()
    net.balancer.step()
    reference(plain.losses(batch())).backward()
    reference.step()
    same(net, plain, reference)


def test_other_backwards_through_the_branches_do_not_count():
    """As those that find adversarial inputs, before the balanced loss or between two of them."""
    net, plain, reference = pair()
    for step in range(3):
        net.zero_grad()
        plain.zero_grad()
        for number in (2 * step, 2 * step + 1):
            first, *_ = net.balancer.branch(net.trunk(batch(9)))
            net.heads[0](first).square().sum().backward()
            (net.balanced(batch(number)) / 2).backward()
            (reference(plain.losses(batch(number))) / 2).backward()
        net.balancer.step()
        reference.step()
    same(net, plain, reference)


def test_what_comes_after_the_last_balanced_loss_does_not_count():
    net, plain, reference = pair()
    net.balanced(batch()).backward()
    reference(plain.losses(batch())).backward()
    first, *_ = net.balancer.branch(net.trunk(batch(9)))
    (30 * net.heads[0](first)).square().sum().backward()
    for balancer in (net.balancer, reference):
        balancer.step()
    norms = [[row["norm"] for row in balancer.history.rows()] for balancer in (net.balancer, reference)]
    assert norms[0] == pytest.approx(norms[1])


@pytest.mark.filterwarnings("default")
def test_micro_batches_of_which_some_are_compiled():
    net, plain, reference = pair()
    compiled = torch.compile(net.balanced, backend="aot_eager")
    for number, balanced in enumerate([compiled, net.balanced, compiled, net.balanced]):
        (balanced(batch(number)) / 4).backward()
        (reference(plain.losses(batch(number))) / 4).backward()
    net.balancer.step()
    reference.step()
    same(net, plain, reference)


def test_heads_that_cannot_run_twice_start_from_ones_and_say_so_once():
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(8, 4), torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2))
    balancer = GradNorm(2, at="branches", initial_weights="balanced")

    def loss():
        branches = balancer.branch(trunk(torch.randn(6, 8)))
        outputs = [checkpoint(head, f, use_reentrant=True) for head, f in zip(heads, branches, strict=True)]
        return balancer([y.square().mean() for y in outputs])

    first = loss()
    with pytest.warns(RuntimeWarning, match="could not run the first look"):
        first.backward()
    balancer.step()
    loss().backward()
    balancer.step()
    assert len(balancer.history) == 2
