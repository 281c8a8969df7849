"""Each kind of graph: what capture measures equals `torch.autograd.grad` of each task, to the last bit where the
operations are the same, and the model's own gradient is untouched."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradnorm import GradNorm, GraphError
from gradnorm.capture import _hooks, _products
from gradnorm.capture._collectors import Edge, origin


class Case:
    """`losses(x)` for a network, its `W`, and inputs."""

    tolerance = 1e-5

    def __init__(self, model, losses, shared, x):
        self.model, self.losses, self.shared, self.x = model, losses, list(shared), x


def measured(case, count, scale=1.0, **kwargs):
    """The rows that one backward of a balanced loss measures, unscaled: [T, N]."""
    balancer = GradNorm(count, shared=case.shared, **kwargs)
    balancer.weights.copy_(torch.linspace(0.5, 1.5, count))
    torch.manual_seed(1)
    (balancer(case.losses(case.x)) * scale).backward()
    sums = balancer._measurement.sums
    entries = sums.entries.sqrt() if kwargs.get("at") == "features" else sums.entries
    return entries / (sums.factors * balancer.weights).unsqueeze(1)


def expected(case):
    """One `torch.autograd.grad` per task, on a graph of its own."""
    rows = []
    torch.manual_seed(1)
    losses = list(case.losses(case.x))
    for loss in losses:
        gradients = torch.autograd.grad(loss, case.shared, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros(w.numel()) if g is None else g.to_dense().flatten().float()
                    for w, g in zip(case.shared, gradients, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def mlp(activation=nn.Tanh):
    return nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 8), activation())


def heads(n=3, width=8):
    return nn.ModuleList(nn.Linear(width, 2) for _ in range(n))


def one_trunk_call(trunk, hs, loss=lambda y, i: y.square().mean() * 10**i):
    def losses(x):
        features = trunk(x)
        return [loss(h(features), i) for i, h in enumerate(hs)]

    return losses


def simple():
    trunk, hs = mlp(), heads()
    return Case(nn.ModuleList([trunk, hs]), one_trunk_call(trunk, hs), [trunk[2].weight], torch.randn(5, 6))


def several_parameters():
    case = simple()
    case.shared = [*case.model[0][2].parameters(), case.model[0][0].weight]
    return case


def skips():
    first, second, hs = nn.Linear(6, 8), nn.Linear(8, 8), heads(3)

    def losses(x):
        a = first(x).tanh()
        b = second(a).tanh()
        return [hs[0](a + b).square().mean(), hs[1](b).square().mean(), hs[2](a * b).square().mean()]

    return Case(nn.ModuleList([first, second, hs]), losses, [first.weight, second.weight], torch.randn(5, 6))


def separate_forwards():
    """A physics-informed network: u'' = f inside, u = g at the border, each by its own forward."""
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def losses(x):
        inside = x[:, :1].clone().requires_grad_()
        u = net(inside)
        (du,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), inside, create_graph=True)
        return [(ddu + u).square().mean(), (net(x[:, 1:2]) - 1).square().mean()]

    return Case(net, losses, [net[2].weight, net[4].weight], torch.randn(5, 6))


def checkpointed():
    case = simple()
    trunk, hs = case.model
    case.losses = one_trunk_call(lambda x: checkpoint(trunk, x, use_reentrant=False), hs)
    return case


def autocast():
    case = simple()
    plain_losses = case.losses

    def losses(x):
        with torch.autocast("cpu", torch.bfloat16):
            return plain_losses(x)

    case.losses, case.tolerance = losses, 2e-2  # bfloat16 keeps eight bits
    return case


def recurrent(kind):
    trunk, hs = kind(6, 8, batch_first=True), heads()
    losses = one_trunk_call(lambda x: trunk(x.unsqueeze(0).expand(2, -1, -1))[0], hs)
    return Case(nn.ModuleList([trunk, hs]), losses, [trunk.weight_hh_l0, trunk.weight_ih_l0], torch.randn(5, 6))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(1, 2, 5, 12).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v).reshape(5, 8)


def attention():
    trunk, hs = Attention(), heads()
    return Case(nn.ModuleList([trunk, hs]), one_trunk_call(trunk, hs), [trunk.qkv.weight], torch.randn(5, 6))


def batch_norm():
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8))
    hs = heads()
    return Case(nn.ModuleList([trunk, hs]), one_trunk_call(trunk, hs), [trunk[0].weight], torch.randn(5, 1, 6, 6))


def in_place():
    trunk = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True))
    hs = heads()

    def features(x):
        y = trunk(x) + 1
        y[:, :2].mul_(2)
        return y

    return Case(nn.ModuleList([trunk, hs]), one_trunk_call(features, hs), [trunk[2].weight], torch.randn(5, 6))


def shared_decoder():
    trunk, decoder, hs = mlp(), nn.Linear(8, 8), heads()

    def losses(x):
        features = trunk(x)
        decoded = decoder(features).tanh()
        return [hs[0](decoded).square().mean(), hs[1](decoded + features).square().mean(), hs[2](features).abs().mean()]

    return Case(nn.ModuleList([trunk, decoder, hs]), losses, [trunk[2].weight], torch.randn(5, 6))


def loss_used_twice():
    case = simple()
    first = case.losses
    case.losses = lambda x: (lambda a, b, c: [a, a, b])(*first(x))
    return case


def loss_on_loss():
    case = simple()
    first = case.losses
    case.losses = lambda x: (lambda a, b, c: [a, a + b, c * a])(*first(x))
    return case


def stacked():
    case = simple()
    first = case.losses
    case.losses = lambda x: torch.stack(first(x))
    return case


def unbound():
    case = simple()
    first = case.losses
    case.losses = lambda x: list(torch.stack(first(x)).unbind())
    return case


def picked():
    case = simple()
    first = case.losses
    case.losses = lambda x: (lambda s: [s[0], s[1], s[-1]])(torch.stack(first(x)))
    return case


def across(read):
    """Heads' outputs that are collected along one dimension, and read along another: each loss is of all heads."""
    trunk, hs = mlp(), nn.ModuleList(nn.Linear(8, 3) for _ in range(3))

    def losses(x):
        outputs = [h(trunk(x[:3])) for h in hs]  # [3, 3] each
        return [10**i * (part + 1).square().mean() for i, part in enumerate(read(outputs))]

    return Case(nn.ModuleList([trunk, hs]), losses, [trunk[2].weight], torch.randn(5, 6))


def across_stack(outputs):
    return torch.stack([output.mean(1) for output in outputs]).unbind(1)


def across_cat(outputs):
    joint = torch.cat(outputs, 1)
    return [joint.narrow(0, 0, 3), joint.narrow(0, 0, 2), joint.narrow(0, 1, 2)]


def across_written(outputs):
    joint = torch.zeros(3, 3)
    for i, output in enumerate(outputs):
        joint[:, i] = output.mean(1)
    return [joint[0], joint[1], joint[2]]


def across_slices(outputs):
    joint = torch.stack([output.mean(1) for output in outputs])
    return [joint[1:3][:, 0:1], joint[0:2][:, 1:2], joint[1:3][:, 1:2]]


def stacked_and_summed():
    case = simple()
    first = case.losses
    case.losses = lambda x: (lambda s: [s[0], s[1], s.sum()])(torch.stack(first(x)))
    return case


def read_twice():
    trunk, hs = mlp(), heads()

    def losses(x):
        features = trunk(x)
        return [(h(features) * features.mean()).square().mean() for h in hs]

    return Case(nn.ModuleList([trunk, hs]), losses, [trunk[2].weight], torch.randn(5, 6))


def vector():
    trunk, head = mlp(), nn.Linear(8, 3)
    losses = lambda x: head(trunk(x)).square().mean(0)  # noqa: E731
    return Case(nn.ModuleList([trunk, head]), losses, [trunk[2].weight], torch.randn(5, 6))


def broadcast():
    trunk, hs = mlp(), heads()

    def losses(x):
        features = trunk(x).mean(1, keepdim=True)  # [5, 1], read as [5, 8]
        return [(features * torch.arange(8.0) * (i + 1)).square().mean() for i in range(3)]

    return Case(nn.ModuleList([trunk, hs]), losses, [trunk[2].weight], torch.randn(5, 6))


def regularizer():
    case = simple()
    first = case.losses
    (w,) = case.shared
    case.losses = lambda x: [*first(x)[:2], w.square().sum()]
    return case


def split_output():
    trunk, joint = mlp(), nn.Linear(8, 6)

    def losses(x):
        return [part.square().mean() for part in joint(trunk(x)).split(2, 1)]

    return Case(nn.ModuleList([trunk, joint]), losses, [joint.weight], torch.randn(5, 6))


def embedding():
    table, hs = nn.Embedding(10, 8, sparse=True), heads()
    losses = one_trunk_call(lambda x: table(x), hs)
    return Case(nn.ModuleList([table, hs]), losses, [table.weight], torch.tensor([1, 3, 3, 7]))


CASES = {
    "plain": simple,
    "several parameters": several_parameters,
    "skips": skips,
    "separate forwards": separate_forwards,
    "checkpoint": checkpointed,
    "autocast": autocast,
    "RNN": lambda: recurrent(nn.RNN),
    "LSTM": lambda: recurrent(nn.LSTM),
    "GRU": lambda: recurrent(nn.GRU),
    "attention": attention,
    "batch norm": batch_norm,
    "in-place": in_place,
    "shared decoder": shared_decoder,
    "a loss twice": loss_used_twice,
    "a loss in another": loss_on_loss,
    "stacked": stacked,
    "unbound": unbound,
    "picked": picked,
    "stacked and summed": stacked_and_summed,
    "features read twice": read_twice,
    "stacked and read across": lambda: across(across_stack),
    "joined and read across": lambda: across(across_cat),
    "written and read across": lambda: across(across_written),
    "slices of slices": lambda: across(across_slices),
    "vector loss": vector,
    "broadcast": broadcast,
    "regularizer": regularizer,
    "split output": split_output,
    "sparse embedding": embedding,
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    torch.manual_seed(0)
    return CASES[request.param]()


@pytest.fixture(params=["one by one", "batched"])
def batched(request, monkeypatch):
    """Whether products are taken at once wherever that is allowed."""
    monkeypatch.setattr(_products, "FEWEST_BATCHED", 2 if request.param == "batched" else 1000)
    return request.param == "batched"


@pytest.mark.parametrize("scale", [1.0, 65536.0, 0.25])
def test_each_task_gradient_is_that_of_autograd(case, scale, batched):
    reference = expected(case)
    found = measured(case, len(reference), scale, check=not batched)
    for row, wanted in zip(found, reference, strict=True):
        torch.testing.assert_close(row, wanted, rtol=case.tolerance, atol=case.tolerance * float(wanted.norm()))
    assert reference.abs().sum(1).min() > 0


def test_the_model_gradient_is_that_of_the_weighted_sum(case):
    parameters = list(case.model.parameters())
    torch.manual_seed(1)
    losses = list(case.losses(case.x))
    weights = torch.linspace(0.5, 1.5, len(losses))
    wanted = torch.autograd.grad((weights * torch.stack(losses)).sum(), parameters, allow_unused=True)
    measured(case, len(losses))
    for parameter, gradient in zip(parameters, wanted, strict=True):
        if gradient is None:
            assert parameter.grad is None
        else:
            assert torch.equal(parameter.grad.to_dense(), gradient.to_dense())


def test_a_second_backward_over_a_retained_graph_measures_the_same(case):
    reference = expected(case)
    balancer = GradNorm(len(reference), shared=case.shared)
    torch.manual_seed(1)
    loss = balancer(case.losses(case.x))
    loss.backward(retain_graph=True)
    first = balancer._measurement.sums.entries.clone()
    loss.backward()
    torch.testing.assert_close(balancer._measurement.sums.entries, 2 * first)
    assert balancer._measurement.sums.factors.tolist() == [2.0] * len(reference)


def test_a_batched_product_that_fails_is_not_tried_again(monkeypatch):
    tried = []

    def fails(*_):
        tried.append(1)
        raise RuntimeError("vmap does not get through")

    monkeypatch.setattr(_products, "FEWEST_BATCHED", 2)
    monkeypatch.setattr(_hooks, "batched_product", fails)
    case = simple()
    balancer = GradNorm(3, shared=case.shared, check=False)
    for _ in range(3):
        balancer(case.losses(case.x)).backward()
        balancer.step()
    assert len(tried) == 1
    assert len(balancer.history) == 3


def test_features_mode_measures_the_norm_where_the_tasks_meet():
    torch.manual_seed(0)
    trunk, hs = mlp(), heads()
    kept = {}

    def losses(x):
        kept["features"] = trunk(x)
        return [h(kept["features"]).square().mean() * 10**i for i, h in enumerate(hs)]

    case = Case(None, losses, [trunk[2].weight], torch.randn(5, 6))
    found = measured(case, 3, at="features")
    wanted = [torch.autograd.grad(loss, kept["features"], retain_graph=True)[0].norm() for loss in losses(case.x)]
    torch.testing.assert_close(found.flatten(), torch.stack(wanted))


@pytest.mark.parametrize("segment", [slice(2, 4), slice(3, 4)], ids=["around W", "after W"])
def test_reentrant_checkpointing_is_refused_with_the_remedy(segment):
    case = simple()
    trunk, hs = case.model

    def features(x):
        return trunk[segment.stop :](checkpoint(trunk[segment], trunk[: segment.start](x), use_reentrant=True))

    case.losses = one_trunk_call(features, hs)
    balancer = GradNorm(3, shared=case.shared)
    with pytest.raises(GraphError, match="use_reentrant=False"):
        balancer(case.losses(case.x)).backward()


OPERATIONS = {
    "add": lambda y: y + 1,
    "addmm": lambda y: y,
    "clone": lambda y: y.clone(),
    "div": lambda y: y / 3,
    "elu": F.elu,
    "expand": lambda y: y.unsqueeze(1).expand(-1, 3, -1).sum(1),
    "gelu": F.gelu,
    "gelu tanh": lambda y: F.gelu(y, approximate="tanh"),
    "leaky relu": F.leaky_relu,
    "mean": lambda y: y.view(len(y), 4, 2).mean(1),
    "mul": lambda y: y * y,
    "layer norm": lambda y: F.layer_norm(y, y.shape[1:], torch.linspace(1, 2, y.shape[1])),
    "neg": lambda y: -y,
    "permute": lambda y: y.view(len(y), 4, 2).permute(0, 2, 1).reshape(len(y), 8),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "squeeze": lambda y: y.unsqueeze(1).squeeze(1),
    "sub": lambda y: y - torch.ones(y.shape[1]),
    "sum": lambda y: y.view(len(y), 4, 2).sum(1),
    "tanh": torch.tanh,
    "transpose": lambda y: y.view(len(y), 4, 2).transpose(1, 2).reshape(len(y), 8),
    "convolution": lambda y: F.conv1d(y.unsqueeze(1), torch.ones(2, 1, 3) / 3, padding=1).flatten(1),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_that_are_batched(operation, monkeypatch):
    """Each of them between the heads and `W`: one product for all tasks gives what single ones give."""
    torch.manual_seed(0)
    first, last = nn.Linear(6, 8), nn.Linear(8, 8)
    x = torch.randn(5, 6)
    taken, rows = [], []
    batched_product = _products.batched_product
    monkeypatch.setattr(_hooks, "batched_product", lambda *args: taken.append(1) or batched_product(*args))
    for most in (0, 2**17):
        monkeypatch.setattr(_products, "MOST_BATCHED", {"cpu": most, "cuda": most})
        features = OPERATIONS[operation](last(first(x).tanh()))
        torch.manual_seed(1)
        losses = [(features * torch.randn(features.shape[1])).sigmoid().mean() for _ in range(5)]
        balancer = GradNorm(5, shared=last.weight, check=False)
        last.weight.grad = None
        balancer(losses).backward()
        rows.append(balancer._measurement.sums.entries)
    assert taken == [1]
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-7)


def test_a_row_of_a_stack_is_one_of_its_tensors_and_a_column_is_not():
    first, second = (torch.ones(2, requires_grad=True) * factor for factor in (2, 3))
    stacked = torch.stack([first, second])
    row, column = Edge(stacked[1].grad_fn, 0), Edge(stacked[:, 1].grad_fn, 0)
    assert origin(row) == Edge(second.grad_fn, 0)
    assert origin(column) == column
    last = torch.stack([first, second], -1)[:, 1]
    assert origin(Edge(last.grad_fn, 0)) == Edge(second.grad_fn, 0)
