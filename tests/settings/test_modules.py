"""Networks whose parameters are not simply their modules' own: replaced, copied, computed, frozen, or used twice."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations

from gradnorm import ArgumentError, GradNorm, GraphError

from ..oracle.literal import Literal
from ..unit.networks import Net, batch

NAMES = ["a", "b", "c"]
LR = 1e-2


class Model(Net):
    """`Net` with its losses as the forward, in float64 for comparisons."""

    def __init__(self, change=lambda net: None):
        super().__init__()
        change(self)
        self.double()

    def forward(self, x):
        return self.losses(x)


def sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)


def ours(model, forward=None, shared=None, steps=4):
    """Weights and parameters after ordinary training."""
    balancer, optimizer = GradNorm(NAMES, shared=shared, alpha=1.5).double(), sgd(model)
    for number in range(steps):
        optimizer.zero_grad()
        balancer((forward or model)(batch(number).double())).backward()
        optimizer.step()
        balancer.step()
    return [balancer.weights, *(p.detach() for p in model.parameters())]


def literally(model, shared, steps=4):
    """The same by Algorithm 1 in the words of the paper."""
    oracle, optimizer = Literal(len(NAMES), shared, alpha=1.5), sgd(model)
    for number in range(steps):
        oracle.step(list(model(batch(number).double()).values()), optimizer)
    return [oracle.w.detach(), *(p.detach() for p in model.parameters())]


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert (wanted[0] - 1).abs().max() > 0.01


# ------------------------------------------------------------------------------------------------------ functional_call


def test_functional_call_with_leaves_that_stay():
    plain, model = Model(), Model()
    leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    balancer = GradNorm(NAMES, shared=leaves["trunk.2.weight"], alpha=1.5).double()
    for number in range(4):
        balancer(functional_call(model, leaves, (batch(number).double(),))).backward()
        with torch.no_grad():
            for leaf in leaves.values():
                leaf -= LR * leaf.grad
                leaf.grad = None
        balancer.step()
    assert_same([balancer.weights, *leaves.values()], literally(plain, plain.last))


def test_leaves_that_are_replaced_in_each_step_are_refused():
    model, balancer = Model(), GradNorm(NAMES)

    def step():
        leaves = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
        balancer(functional_call(model, leaves, (batch().double(),))).backward()
        balancer.step()

    for _ in range(65):
        step()
    with pytest.raises(GraphError, match=r"another one in 65 graphs: where parameters are replaced"):
        step()


def test_transforms_are_refused_and_eval_is_not():
    model, balancer = Model(), GradNorm(NAMES)
    parameters = dict(model.named_parameters())

    def loss(parameters, x):
        return balancer(functional_call(model, parameters, (x,)))

    with pytest.raises(
        GraphError, match=r"inside torch\.func\.grad, vmap or another.*functional_call and backward\(\)"
    ):
        grad(loss)(parameters, batch().double())
    with pytest.raises(GraphError, match=r"inside torch\.func"):
        vmap(loss, in_dims=(None, 0))(parameters, torch.stack([batch(0), batch(1)]).double())
    balancer.eval()
    found = grad(loss)(parameters, batch().double())
    wanted = torch.autograd.grad(sum(model(batch().double()).values()), parameters.values())
    torch.testing.assert_close(list(found.values()), list(wanted))


def test_branches_in_transforms_are_refused_and_pass_through_in_eval():
    balancer = GradNorm(2, at="branches")

    def loss(x):
        one, two = balancer.branch(x)
        return balancer([one.square().sum(), two.exp().sum()])

    with pytest.raises(GraphError, match=r"inside torch\.func"):
        grad(loss)(torch.ones(3))
    balancer.eval()
    torch.testing.assert_close(grad(loss)(torch.ones(3)), 2 + torch.ones(3).exp())


# --------------------------------------------------------------------------------------------------------- DataParallel


class Broadcast(torch.autograd.Function):
    """What `nn.DataParallel` does with the parameters, without its GPUs: one node, every parameter once a replica."""

    @staticmethod
    def forward(ctx, replicas, *parameters):
        ctx.replicas = replicas
        return tuple(p.clone() for _ in range(replicas) for p in parameters)

    @staticmethod
    def backward(ctx, *gradients):
        count = len(gradients) // ctx.replicas
        return None, *(sum(gradients[i::count]) for i in range(count))


class Replicated(Model):
    """`Model` on two replicas of itself, each with half of the batch; the outputs are gathered before the losses."""

    def losses(self, x):
        names, parameters = zip(*self.named_parameters(), strict=True)
        copies = Broadcast.apply(2, *parameters)
        outputs = []
        for replica, part in enumerate(x.chunk(2)):
            mine = dict(zip(names, copies[replica * len(names) :], strict=False))
            outputs.append(functional_call(_Outputs(self), {f"net.{name}": p for name, p in mine.items()}, (part,)))
        gathered = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
        return {
            name: 10**i * (out - 1).square().mean() for i, (name, out) in enumerate(zip(NAMES, gathered, strict=True))
        }


class _Outputs(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        features = self.net.trunk(x)
        return [head(features) for head in self.net.heads]


def test_replicas_of_data_parallel_with_w_named():
    model, plain = Replicated(), Model()
    assert_same(ours(model, shared=model.last), literally(plain, plain.last))


def test_data_parallel_without_gpus_passes_through():
    model, plain = Model(), Model()
    assert_same(ours(model, nn.DataParallel(model)), literally(plain, plain.last))


# ------------------------------------------------------------------------------------------------------ parametrization

PARAMETRIZATIONS = {
    "weight norm": (parametrizations.weight_norm, "original1"),
    "spectral norm": (parametrizations.spectral_norm, "original"),
    "orthogonal": (parametrizations.orthogonal, "original"),
}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("whole", [False, True])
def test_a_parametrized_layer_is_measured_at_its_own_parameters(name, whole):
    change, original = PARAMETRIZATIONS[name]
    model, plain = (Model(lambda net: change(net.trunk[2])) for _ in range(2))
    if whole:  # the layer's parameters together, bias and all
        found = ours(model, shared=model.trunk[2])
        wanted = literally(plain, list(plain.trunk[2].parameters()))
    else:
        found = ours(model)
        wanted = literally(plain, getattr(plain.trunk[2].parametrizations.weight, original))
    assert_same(found, wanted)


def test_a_computed_weight_is_refused_with_the_parameter_to_name():
    layer = parametrizations.weight_norm(nn.Linear(4, 4))
    with pytest.raises(ArgumentError, match=r"computed tensor.*layer\.parametrizations\.weight\.original"):
        GradNorm(2, shared=layer.weight)


# -------------------------------------------------------------------------------------------------------- frozen trunks


class LoRA(nn.Module):
    """A frozen layer and its low-rank correction."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, layer.in_features))
        self.B = nn.Parameter(torch.randn(layer.out_features, rank))

    def forward(self, x):
        return self.layer(x) + x @ self.A.T @ self.B.T


def adapt(net):
    net.trunk.requires_grad_(False)
    net.trunk[2] = LoRA(net.trunk[2])


def test_the_last_adapter_of_a_frozen_trunk_is_found():
    model, plain = Model(adapt), Model(adapt)
    assert_same(ours(model), literally(plain, plain.trunk[2].B))
    torch.testing.assert_close(model.trunk[0].weight, Model().trunk[0].weight, rtol=0, atol=0)


def test_a_trunk_without_anything_to_train_is_refused():
    model = Model(lambda net: net.trunk.requires_grad_(False))
    with pytest.raises(GraphError, match="no layer is shared"):
        GradNorm(NAMES)(model(batch().double()))
    with pytest.raises(ArgumentError, match="frozen tensor"):
        GradNorm(NAMES, shared=model.last)
    with pytest.raises(ArgumentError, match="no trainable parameter"):
        GradNorm(NAMES, shared=model.trunk)


def test_a_w_that_is_frozen_later_is_refused():
    model = Model()
    balancer = GradNorm(NAMES, shared=model.last)
    model.trunk.requires_grad_(False)
    with pytest.raises(GraphError, match="was frozen after the balancer was made"):
        balancer(model(batch().double()))


# --------------------------------------------------------------------------------------------------------- tied weights


class Tied(nn.Module):
    """Words in, two tasks out: one of them names words by the embedding itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 8)
        self.trunk = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.mood = nn.Linear(8, 3)
        self.double()

    def forward(self, words):
        features = self.trunk(self.embed(words))
        return {
            "next": nn.functional.cross_entropy(features @ self.embed.weight.T, words.roll(1)),
            "mood": 10 * nn.functional.cross_entropy(self.mood(features), words % 3),
        }


@pytest.mark.parametrize("find", [True, False])
def test_tied_weights(find):
    """Found is the trunk's last layer, although a head uses the embedding later; named, the embedding has both uses."""
    model = Tied()
    plain = copy.deepcopy(model)
    W = plain.trunk[0].weight if find else plain.embed.weight
    balancer = GradNorm(["next", "mood"], shared=None if find else model.embed, alpha=1.5).double()
    oracle, optimizers = Literal(2, W, alpha=1.5), [sgd(model), sgd(plain)]
    for number in range(4):
        words = torch.randint(11, (20,), generator=torch.Generator().manual_seed(number))
        optimizers[0].zero_grad()
        balancer(model(words)).backward()
        optimizers[0].step()
        balancer.step()
        oracle.step(list(plain(words).values()), optimizers[1])
    assert_same([balancer.weights, *model.parameters()], [oracle.w.detach(), *plain.parameters()])
