"""Functions that are not torch's own: what they are lent, and what the first measured step finds out about them."""

import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from gradnorm import GradNorm, GraphError
from gradnorm.capture import _alone, _operations
from gradnorm.capture._operations import Path

from ..networks import normal


def scaled(x):
    return x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


class InPlaceRMS(torch.autograd.Function):
    """Writes its result into the gradient that it receives, as fused norms do."""

    @staticmethod
    def forward(ctx, x):
        r = x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        ctx.save_for_backward(x, r)
        return x * r

    @staticmethod
    def backward(ctx, dy):
        x, r = ctx.saved_tensors
        m = (dy * x).mean(-1, keepdim=True)
        return dy.mul_(r).sub_(x * r**3 * m)


class SavedInPlace(torch.autograd.Function):
    """Overwrites what it saved, as fused activations do."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach().clone()
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, dy):
        s = ctx.x.sigmoid()
        return dy * ctx.x.mul_(1 - s).add_(1).mul_(s)


class RunsOnce(torch.autograd.Function):
    """Frees what it saved, as reversible networks do."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = x.detach().tanh()
        return x.tanh()

    @staticmethod
    def backward(ctx, dy):
        y = ctx.y
        del ctx.y
        return dy * (1 - y * y)


class SavesScaled(torch.autograd.Function):
    """A loss whose gradient is made in the forward and scaled in place, as fused cross entropies do."""

    @staticmethod
    def forward(ctx, x):
        ctx.gradient = 2 * x.detach() / x.numel()
        return x.square().mean()

    @staticmethod
    def backward(ctx, factor):
        return ctx.gradient.mul_(factor)


class Net(nn.Module):
    def __init__(self, function=None, loss=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 16)
        self.heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(2))
        self.function = function or (lambda x: x)
        self.loss = loss or (lambda x: x.square().mean())

    def losses(self, x):
        features = self.function(self.last(self.first(x).tanh()))
        return [self.loss(self.heads[0](features) - 3), 10 * self.loss(self.heads[1](features) - x[:, :1])]


def gradients(net, balance):
    x = normal(32, 8, seed=1)
    balance(net.losses(x)).backward()
    return [parameter.grad.clone() for parameter in net.parameters()]


WAYS = {
    "descent": {},
    "closed-form": {"update": "closed-form", "initial_weights": None},
    "named": {"shared": "last.weight"},
    "unchecked": {"check": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_function_that_writes_into_its_gradient_gets_a_copy(way):
    net = Net(InPlaceRMS.apply)
    balancer = GradNorm(2, model=net, **WAYS[way])
    plain = gradients(Net(InPlaceRMS.apply), sum)
    for ours, theirs in zip(gradients(net, balancer), plain, strict=True):
        torch.testing.assert_close(ours, theirs)
    balancer.step()
    reference = Net(scaled)
    measured = GradNorm(2, model=reference, **WAYS[way])
    gradients(reference, measured)
    measured.step()
    for one, other in zip(balancer.history.rows(), measured.history.rows(), strict=True):
        assert one["norm"] == pytest.approx(other["norm"], rel=1e-5)


@pytest.mark.parametrize("way", ["descent", "closed-form", "named"])
@pytest.mark.parametrize("function", [SavedInPlace, RunsOnce])
def test_one_that_cannot_run_again_is_refused_with_the_remedy(function, way):
    net = Net(function.apply)
    with pytest.raises(GraphError, match=rf'{function.__name__}Backward.*at="features"'):
        gradients(net, GradNorm(2, model=net, **WAYS[way]))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("function", [SavedInPlace, RunsOnce])
def test_the_remedy_works(function, named):
    net, plain = Net(function.apply), Net(function.apply)
    balancer = GradNorm(2, at="features", model=net, shared="last.weight" if named else None)
    for ours, theirs in zip(gradients(net, balancer), gradients(plain, sum), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize(("kwargs", "works"), [({"shared": "last.weight"}, True), ({"update": "closed-form"}, False)])
def test_a_loss_that_scales_its_gradient_in_place(kwargs, works, scale):
    """Heads run once, but for a first look."""
    net = Net(loss=SavesScaled.apply)
    balancer = GradNorm(2, model=net, **kwargs)
    if works:
        ours = gradients(net, lambda losses: scale * balancer(losses))
        for mine, theirs in zip(ours, gradients(Net(), lambda losses: scale * sum(losses)), strict=True):
            torch.testing.assert_close(mine, theirs)
    else:
        with pytest.raises(GraphError, match="initial_weights=None"):
            gradients(net, lambda losses: scale * balancer(losses))


def test_an_error_of_the_users_own_stays_what_it_is():
    class Broken(RunsOnce):
        @staticmethod
        def backward(ctx, dy):
            raise ValueError("broken")

    net = Net(Broken.apply)
    with pytest.raises(ValueError, match="broken"):
        gradients(net, GradNorm(2, shared=net.last.weight))


class NotLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy / dy.norm()


def test_gradients_that_do_not_add_up_are_refused():
    net = Net(NotLinear.apply)
    with pytest.raises(GraphError, match=r"NotLinearBackward.*check=False"):
        gradients(net, GradNorm(2, shared=net.last.weight))
    net = Net(NotLinear.apply)
    gradients(net, GradNorm(2, shared=net.last.weight, check=False))


def test_a_hook_that_takes_the_gradient_away_is_refused():
    class Taking(nn.Module):
        def forward(self, x):
            calls = []
            y = x * 1.0
            y.register_hook(lambda g: g if len(calls) < 1 and not calls.append(1) else 0 * g)
            return y

    net = Net(Taking())
    with pytest.raises(GraphError, match="when it was taken again"):
        gradients(net, GradNorm(2, shared=net.last.weight))


@pytest.mark.parametrize("penalty", ["weights", "features", "head", "W"])
def test_a_loss_of_the_users_own_does_not_trip_the_check(penalty):
    net, plain = Net(), Net()
    balancer = GradNorm(2, shared=net.last.weight)

    def extra(of, losses):
        terms = {
            "weights": of.first.weight.square().sum(),
            "W": of.last.weight.square().sum(),
            "features": of.last(of.first(torch.ones(1, 8)).tanh()).sum(),
            "head": of.heads[0](torch.ones(1, 16)).sum(),
        }
        return terms[penalty]

    ours = gradients(net, lambda losses: balancer(losses) + extra(net, losses))
    theirs = gradients(plain, lambda losses: sum(losses) + extra(plain, losses))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    balancer.step()


def test_a_second_balancer_does_not_trip_the_check():
    net, others = Net(), nn.ModuleList(nn.Linear(16, 1) for _ in range(2))
    x = torch.randn(32, 8)
    features = net.last(net.first(x).tanh())
    losses = [[(head(features) - 1).square().mean() for head in heads] for heads in (net.heads, others)]
    wanted = [
        [torch.autograd.grad(loss, net.last.weight, retain_graph=True)[0].norm() for loss in each] for each in losses
    ]
    balancers = GradNorm(2), GradNorm(2, update="closed-form")
    sum(balancer(each) for balancer, each in zip(balancers, losses, strict=True)).backward()
    for balancer, norms in zip(balancers, wanted, strict=True):
        balancer.step()
        found = [row["norm"] / row["weight"] for row in balancer.history.rows()]
        assert found == pytest.approx([norm.item() for norm in norms], rel=1e-4)


def test_an_overflow_puts_the_check_off():
    net = Net(SavedInPlace.apply)
    balancer = GradNorm(2, shared=net.last.weight)
    gradients(net, lambda losses: torch.inf * balancer(losses))
    assert balancer._measurement.check
    with pytest.raises(GraphError, match="taken again"):
        gradients(net, balancer)


def test_one_check_is_enough():
    net = Net()
    balancer = GradNorm(2, shared=net.last.weight)
    assert balancer._measurement.check
    gradients(net, balancer)
    assert not balancer._measurement.check


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_scripted_function_is_foreign_and_torchs_own_are_not():
    @torch.jit.script
    def scripted(x):
        return x.relu() * x.sigmoid()

    x = torch.randn(3, 3, requires_grad=True)
    for _ in range(3):
        y = scripted(x)
    assert _operations.kind(y.grad_fn) is Path.FOREIGN
    assert _operations.kind(InPlaceRMS.apply(x).grad_fn) is Path.FOREIGN
    assert _operations.kind(x.cumsum(0).grad_fn) is Path.OWN
    assert _operations.kind((x @ x).grad_fn) is Path.BATCHED


def test_a_sum_that_overflows_where_its_terms_do_not_says_nothing():
    """In half precision a loss scaler begins so, and skips the step."""
    layer = nn.Linear(4, 4, bias=False).half()
    balancer = GradNorm(2, shared=layer.weight)
    features = layer(torch.ones(1, 4).half())
    (balancer([features.sum(), features.sum()]) * 40000.0).backward()
    assert layer.weight.grad.isinf().all()


@pytest.mark.parametrize("update", ["descent", "closed-form"])
def test_sparse_gradients_that_meet_at_the_layer_itself_are_checked(update):
    table = nn.Embedding(20, 8, sparse=True)
    balancer = GradNorm(2, shared=table.weight, update=update, initial_weights=None)
    losses = [table(torch.arange(i, i + 4)).square().mean() * 10**i for i in range(2)]
    wanted = [torch.autograd.grad(loss, table.weight, retain_graph=True)[0].to_dense().norm() for loss in losses]
    balancer(losses).backward()
    balancer.step()
    norms = [row["norm"] for row in balancer.history.rows()]
    assert norms == pytest.approx(torch.stack(wanted).tolist(), rel=1e-5)


def test_an_error_of_the_user_s_own_backward_stays_what_it_is():
    net = Net()
    balancer = GradNorm(2)
    features = net.last(net.first(torch.randn(6, 8)).tanh())
    outputs = [head(features).exp() for head in net.heads]
    loss = balancer([y.square().mean() for y in outputs])
    outputs[0].data.add_(0)
    outputs[0].detach().add_(1)
    with pytest.raises(RuntimeError, match="inplace operation") as error:
        loss.backward()
    assert not isinstance(error.value, GraphError)


def test_hooks_on_w_see_the_model_gradient_only():
    """As `wandb.watch` and the clipping of each parameter by a hook: neither is what the tasks' gradients are for."""
    net, plain = Net(), Net()
    seen = []
    for each in (net, plain):
        each.last.weight.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    net.last.weight.register_hook(lambda gradient: seen.append(gradient.norm().item()))
    balancer = GradNorm(2, shared=net.last.weight)
    for ours, theirs in zip(gradients(net, balancer), gradients(plain, sum), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(seen) == 1
    balancer.step()
    reference = Net()
    unhooked = GradNorm(2, shared=reference.last.weight)
    gradients(reference, unhooked)
    unhooked.step()
    assert balancer.history.rows() == unhooked.history.rows()


HOOKS = {
    "mask": (lambda g: g * (torch.arange(len(g)) < 4).unsqueeze(1), True),
    "scale": (lambda g: 2 * g, False),
    "clip": (lambda g: g.clamp(-1e-3, 1e-3), False),
    "log": (lambda g: None, False),
    "no NaN": (lambda g: g.nan_to_num(), False),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_that_masks_the_gradient_of_w_is_told_once_and_runs_once(kind):
    hook, is_told = HOOKS[kind]
    net, plain = Net(), Net()
    seen = []
    plain.last.weight.register_hook(hook)
    net.last.weight.register_hook(lambda g: seen.append(g.clone()))
    net.last.weight.register_hook(hook)
    balancer = GradNorm(["near", "far"], model=net)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            for ours, theirs in zip(gradients(net, balancer), gradients(plain, balancer_of(balancer)), strict=True):
                torch.testing.assert_close(ours, theirs)
            balancer.step()
    assert [str(each.message).startswith("a hook on last.weight sets parts") for each in said] == [True] * is_told
    assert len(seen) == 3
    assert len(net.last.weight._backward_hooks) == 2


def balancer_of(balancer):
    """The weighted sum by its weights."""
    return lambda losses: sum(w * each for w, each in zip(balancer.weights.tolist(), losses, strict=True))


@pytest.mark.parametrize("at", ["layer", "features"])
def test_a_second_loss_through_a_head_is_named(at):
    net = Net()
    balancer = GradNorm(["near", "far"], at=at)
    with pytest.warns(RuntimeWarning, match="belongs to near alone"):
        gradients(net, lambda losses: balancer(losses) + net.heads[0](torch.ones(1, 16)).sum() + 3 * losses[0])


@pytest.mark.parametrize("update", ["descent", "closed-form"])
@pytest.mark.parametrize("at", ["layer", "features"])
def test_a_second_loss_that_grows_from_nothing_is_named_once_before_long(at, update, monkeypatch):
    monkeypatch.setattr(_alone, "RECHECK", 4)
    net = Net()
    balancer = GradNorm(["near", "far"], at=at, update=update)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(20):
            gradients(net, lambda losses, step=step: balancer(losses) + (step > 5) * 3 * losses[0])
            balancer.step()
            assert len(said) == (step > 7)
    assert "belongs to near alone" in str(said[0].message)
    assert said[0].filename == __file__


@pytest.mark.parametrize("recheck", [4, 97])
def test_a_head_runs_twice_where_a_look_is_due_and_the_weights_do_not_show_it(recheck, monkeypatch):
    monkeypatch.setattr(_alone, "RECHECK", recheck)
    net, plain, runs = Net(), Net(), []
    balancer, reference = GradNorm(["near", "far"], model=net), GradNorm(["near", "far"], model=plain, check=False)

    def watched(step, losses):
        losses[0].register_hook(lambda _: runs.append(step))
        return balancer(losses)

    for step in range(10):
        gradients(net, partial(watched, step))
        gradients(plain, reference)
        balancer.step()
        reference.step()
    again = [4, 8] if recheck == 4 else []
    assert runs == sorted([*range(10), 0, *again])
    assert balancer.history.rows() == reference.history.rows()


def test_a_penalty_of_the_balanced_loss_s_gradient_is_named():
    net = Net()
    balancer = GradNorm(["near", "far"], model=net)
    parameters = list(net.parameters())
    loss = balancer(net.losses(normal(32, 8, seed=1)))
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    with pytest.warns(RuntimeWarning, match="belongs to near, far alone"):
        (loss + sum(each.square().sum() for each in gradients)).backward()


@pytest.mark.parametrize("factors", [(0.3, 0.7), (1.0, -2.0)])
def test_a_second_backward_with_another_factor_is_no_alarm(factors):
    net = Net()
    loss = GradNorm(["near", "far"], model=net)(net.losses(normal(32, 8, seed=1)))
    for factor in factors:
        (factor * loss).backward(retain_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_percent_of_a_second_loss_are_told_from_rounding_in_float32_alone(dtype):
    net = Net().to(dtype)
    balancer = GradNorm(["near", "far"], model=net)
    losses = net.losses(normal(32, 8, seed=1).to(dtype))
    is_told = pytest.warns(RuntimeWarning, match="belongs to near alone")
    with is_told if dtype is torch.float32 else nullcontext():
        (balancer(losses) + 0.03 * losses[0]).backward()


def test_a_gradient_that_is_zero_but_for_rounding_is_no_alarm():
    torch.manual_seed(0)
    first, norm = nn.Linear(8, 16), nn.BatchNorm1d(16)
    heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(2))
    balancer = GradNorm(2, shared=first.bias)
    for _ in range(3):
        features = norm(first(torch.randn(64, 8)))
        balancer([(head(features) - 1).square().mean() for head in heads]).backward()
        balancer.step()
    assert not balancer._measurement.check
