"""GradNorm where TorchJD has a scalarizer, and GradNorm's weights under TorchJD's aggregators."""

import importlib
import sys

import pytest
import torch
from torch import nn
from torchjd import Stateful
from torchjd.aggregation import IMTLG, MGDA, ConFIG, PCGrad, Sum, UPGrad
from torchjd.autojac import jac_to_grad, mtl_backward
from torchjd.linalg import DualConeProjector
from torchjd.scalarization import UW, Constant, Scalarizer

from gradnorm import ArgumentError, GradNorm, GraphError
from gradnorm.torchjd import GradNormScalarizer

STEPS = 10


class Net(nn.Module):
    """Two tasks that pull in opposite directions, of unlike scale."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(8, 1, bias=False) for _ in range(2))
        with torch.no_grad():
            self.heads[1].weight.copy_(-self.heads[0].weight)

    @property
    def w(self):
        return self.trunk[2].weight

    def losses(self, features):
        near, far = (head(features) - 1 for head in self.heads)
        return [near.square().mean(), 10 * far.square().mean()]


def batches():
    return [torch.randn(16, 6, generator=torch.Generator().manual_seed(step)) for step in range(STEPS)]


def by_scalarizer(scalarizer):
    """A loop as TorchJD's documentation has it: values in, a scalar out."""
    net = Net()
    optimizer = torch.optim.SGD([*net.parameters(), *scalarizer.parameters()], lr=1e-2)
    if isinstance(scalarizer, GradNorm):
        scalarizer.attach(optimizer)
    for x in batches():
        loss = scalarizer(torch.stack(net.losses(net.trunk(x))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def by_aggregator(balancer, net, aggregator, after_step=lambda *_: None):
    """The weighted losses' Jacobian, aggregated."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for x in batches():
        features = net.trunk(x)
        losses = net.losses(features)
        optimizer.zero_grad()
        loss = balancer(losses)
        torch.autograd.grad(loss, net.w, retain_graph=True)
        weights = balancer.weights.clone()
        weighted = [w * value for w, value in zip(weights, losses, strict=True)]
        rows = [torch.autograd.grad(value, net.trunk.parameters(), retain_graph=True) for value in weighted]
        mtl_backward(weighted, features=features)
        jac_to_grad(net.trunk.parameters(), aggregator)
        after_step([flat(row) for row in rows], flat(p.grad for p in net.trunk.parameters()))
        optimizer.step()
        balancer.step()
    return net


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


class TwoTasks(DualConeProjector):
    """TorchJD's own projector needs a solver that is installed apart; with two tasks the answer is a formula."""

    def __call__(self, U, G):
        (a, b), between = U.diagonal(), G[0, 1]
        far, near = (-between * a / G[1, 1]).clamp(min=0), (-between * b / G[0, 0]).clamp(min=0)
        return torch.stack([torch.stack([a, far]), torch.stack([near, b])])


def test_it_stands_where_a_scalarizer_does():
    balancer, reference = GradNorm(2), GradNorm(2)
    net, other = by_scalarizer(balancer), Net()
    optimizer = torch.optim.SGD(other.parameters(), lr=1e-2)
    for x in batches():
        optimizer.zero_grad()
        reference(other.losses(other.trunk(x))).backward()
        optimizer.step()
        reference.step()
    assert balancer.weights[0] > 1.1
    torch.testing.assert_close(balancer.weights, reference.weights)
    torch.testing.assert_close(net.state_dict(), other.state_dict())
    for scalarizer in (UW(2), Constant(torch.ones(2))):
        assert not torch.equal(by_scalarizer(scalarizer).w, net.w)


# -------------------------------------------------------------------------------------- the contract of a Scalarizer

SHAPES = [(), (1,), (2,), (5,), (2, 3), (1, 1, 1), (2, 3, 4)]


def scalarizers(shape):
    """One of TorchJD's own beside ours, in `eval()`, where values need no graph."""
    return [UW(shape), GradNormScalarizer(shape).eval()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("which", [0, 1], ids=["UW", "GradNorm"])
def test_values_of_any_shape_become_one_finite_scalar_through_which_gradients_flow(shape, which):
    scalarizer = scalarizers(shape)[which]
    assert isinstance(scalarizer, Scalarizer)
    assert isinstance(scalarizer, Stateful)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = scalarizer(values)
    assert out.dim() == 0
    assert out.isfinite()
    out.backward()
    assert values.grad is not None
    assert values.grad.shape == values.shape
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_new_weights_are_ones_so_that_it_is_the_sum_and_knows_no_order(shape):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    scalarizer = GradNormScalarizer(shape).eval()
    torch.testing.assert_close(scalarizer(values), values.sum())
    torch.testing.assert_close(scalarizer(values.flatten().flip(0).reshape(shape)), values.sum())


@pytest.mark.parametrize("which", [0, 1], ids=["UW", "GradNorm"])
def test_values_of_another_shape_are_refused(which):
    with pytest.raises(ValueError, match=r"values.* shape \(2, 3\)"):
        scalarizers((2, 3))[which](torch.ones(6))


@pytest.mark.parametrize("bad", [0, -1, (2, 0), 2.5])
def test_what_is_no_shape_is_refused(bad):
    with pytest.raises((ArgumentError, TypeError)):
        GradNormScalarizer(bad)


def test_values_without_a_graph_are_refused_in_training():
    with pytest.raises(GraphError, match="no graph"):
        GradNormScalarizer(3)(torch.ones(3))


def trained_scalarizer(scalarizer):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    handle = scalarizer.attach(optimizer)
    for x in batches():
        optimizer.zero_grad()
        scalarizer(torch.stack(net.losses(net.trunk(x))).reshape(scalarizer.shape)).backward()
        optimizer.step()
    handle.remove()
    return net


def test_reset_goes_back_to_the_initial_state():
    scalarizer = GradNormScalarizer((2, 1))
    first = trained_scalarizer(scalarizer)
    learned = scalarizer.weights.clone()
    assert learned[0, 0] > 1.1
    scalarizer.reset()
    assert scalarizer.weights.tolist() == [[1.0], [1.0]]
    assert not len(scalarizer.balancer.history)
    again = trained_scalarizer(scalarizer)
    assert torch.equal(scalarizer.weights, learned)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)


def test_it_trains_as_the_balancer_it_holds():
    scalarizer, balancer = GradNormScalarizer((2, 1)), GradNorm(2)
    torch.testing.assert_close(trained_scalarizer(scalarizer).state_dict(), by_scalarizer(balancer).state_dict())
    torch.testing.assert_close(scalarizer.weights.flatten(), balancer.weights)


def test_its_state_is_saved_and_it_is_printed_as_a_scalarizer_is():
    scalarizer, other = GradNormScalarizer((2, 1)), GradNormScalarizer((2, 1))
    trained_scalarizer(scalarizer)
    other.load_state_dict(scalarizer.state_dict())
    assert torch.equal(other.weights, scalarizer.weights)
    assert repr(scalarizer) == "GradNormScalarizer(shape=(2, 1))"
    assert str(scalarizer) == "GradNormScalarizer"


def test_a_single_value_is_itself():
    scalarizer = GradNormScalarizer(())
    assert scalarizer(torch.tensor(3.0)) == 3
    assert scalarizer.weights is None
    assert scalarizer.attach(torch.optim.SGD([torch.ones(1)], lr=1.0)) is None
    scalarizer.step()
    scalarizer.reset()


def test_without_torchjd_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.delitem(sys.modules, "gradnorm.torchjd")
    with pytest.raises(ImportError, match=r'pip install "gradnorm\[torchjd\]"'):
        importlib.import_module("gradnorm.torchjd")


# --------------------------------------------------------------------------------------------------------------------


def test_values_of_one_reduction_are_measured_all_the_same():
    net = Net()
    balancer = GradNorm(2, shared=net.w)
    outputs = torch.cat([head(net.trunk(batches()[0])) for head in net.heads], 1)
    values = (outputs - 1).square().mean(0)
    norms = [torch.autograd.grad(value, net.w, retain_graph=True)[0].norm() for value in values]
    balancer(values).backward()
    balancer.step()
    assert [row["norm"] for row in balancer.history.rows()] == pytest.approx([norm.item() for norm in norms])


def test_under_the_sum_it_is_gradnorm_itself():
    net, reference = Net(), GradNorm(2)
    balancer = GradNorm(2, shared=net.w)
    by_aggregator(balancer, net, Sum())
    other = by_scalarizer(reference)
    torch.testing.assert_close(balancer.weights, reference.weights)
    torch.testing.assert_close(net.state_dict(), other.state_dict())


@pytest.mark.parametrize("aggregator", [UPGrad(projector=TwoTasks()), PCGrad()], ids=str)
def test_no_task_is_set_back_and_the_weights_still_balance(aggregator):
    net, conflicts = Net(), []

    def check(rows, step):
        conflicts.append(bool(rows[0] @ rows[1] < 0))
        for row in rows:
            assert row @ step >= -1e-4 * row.norm() * step.norm()

    balancer = GradNorm(2, shared=net.w)
    by_aggregator(balancer, net, aggregator, check)
    assert all(conflicts), "the tasks must conflict for this to mean anything"
    assert balancer.weights[0] > 1.1


def test_micro_batches_whose_jacobians_add_up_are_one_step():
    net, rows = Net(), []
    balancer = GradNorm(2, shared=net.w)
    for x in batches()[:3]:
        features = net.trunk(x)
        losses = net.losses(features)
        rows.append([torch.autograd.grad(loss, net.w, retain_graph=True)[0] for loss in losses])
        torch.autograd.grad(balancer(losses), net.w, retain_graph=True)
        mtl_backward(losses, features=features)
    jac_to_grad(net.trunk.parameters(), PCGrad())
    balancer.step()
    expected = [(sum(gradients) / 3).norm().item() for gradients in zip(*rows, strict=True)]
    assert [row["norm"] / row["weight"] for row in balancer.history.rows()] == pytest.approx(expected, rel=1e-4)


def jacobian(seed, tasks=2):
    return torch.randn(tasks, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
def test_the_weights_are_the_preference_of_upgrad(seed):
    J, w = jacobian(seed), torch.tensor([0.3, 1.7])
    by_weights = UPGrad(projector=TwoTasks())(w[:, None] * J)
    torch.testing.assert_close(by_weights, UPGrad(w / 2, projector=TwoTasks())(J))


@pytest.mark.parametrize("aggregator", [ConFIG, IMTLG])
def test_some_aggregators_know_no_length_of_rows(aggregator):
    for seed in range(4):
        J, w = jacobian(seed, tasks=3), torch.tensor([0.2, 0.6, 2.2])
        cosine = torch.cosine_similarity(aggregator()(J), aggregator()(w[:, None] * J), dim=0)
        assert cosine == pytest.approx(1, abs=1e-4)


def test_mgda_turns_the_weights_round():
    equal, weighted = MGDA()(torch.eye(2)), MGDA()(torch.diag(torch.tensor([0.5, 1.5])))
    assert equal[0] == pytest.approx(equal[1])
    assert weighted[0] > 2 * weighted[1], "the task of the smaller weight moves the model more"
