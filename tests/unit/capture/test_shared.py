"""`W`: as the user names it, and as it is found."""

import logging

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradnorm import ArgumentError, Descent, GradNorm, GraphError, diagnose
from gradnorm.capture._first_look import PATIENCE, FirstLook
from gradnorm.capture._graph import AutogradGraph

from ..networks import Net, batch
from .architectures import AsleepAtFirst
from .test_foreign import SavedInPlace


def found(losses, count):
    balancer = GradNorm(count)
    balancer(losses).backward()
    (w,) = balancer.shared
    return w


def test_the_last_shared_layer_is_found_and_announced_once(caplog):
    net = Net()
    balancer = GradNorm(["a", "b", "c"])
    with caplog.at_level(logging.INFO, logger="gradnorm"):
        for _ in range(2):
            balancer(net.losses(batch())).backward()
            balancer.step()
    assert balancer.shared == (net.last,)
    assert [record.message for record in caplog.records] == [
        "gradients are compared at the detected layer: a parameter (8, 8); see shared="
    ]


def test_a_layer_that_only_some_tasks_use_is_not_shared():
    net, decoder = Net(), nn.Linear(8, 8)

    def losses():
        features = net.trunk(batch())
        decoded = decoder(features)
        return [net.heads[0](decoded).sum(), net.heads[1](decoded).sum(), net.heads[2](features).sum()]

    assert found(losses(), 3) is net.last


def test_norm_layers_and_biases_are_passed_over():
    trunk = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU())
    heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
    features = trunk(batch())
    assert found([h(features).square().mean() for h in heads], 2) is trunk[0].weight


@pytest.mark.parametrize("last", ["norm", "positions"])
def test_a_norm_of_many_dimensions_and_positions_that_are_added_are_passed_over(last):
    trunk = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
    norm, positions = nn.LayerNorm([5, 8]), nn.Parameter(torch.randn(5, 8))
    heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
    features = trunk(batch(size=15).view(3, 5, 6))
    features = norm(features) if last == "norm" else (features + positions).relu()
    assert found([h(features).square().mean() for h in heads], 2) is trunk[2].weight


def test_what_is_added_is_w_where_nothing_else_is_shared():
    image = nn.Parameter(torch.randn(6, 6))
    smooth = image.diff().abs().mean()
    losses = [(batch(size=6) + image).square().mean() + smooth, (batch(size=6) - image).sigmoid().mean() + smooth]
    assert found(losses, 2) is image


def test_what_is_added_is_w_where_only_joined_heads_follow():
    positions, joint = nn.Parameter(torch.randn(5, 6)), nn.Linear(6, 2)
    y = joint((batch() + positions).relu())
    assert found([y[:, 0].square().mean(), (y[:, 1] - 1).square().mean()], 2) is positions


def test_tied_weights_count_where_the_common_forward_uses_them():
    embedding, layer, head = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 1)
    features = layer(embedding(torch.tensor([1, 2]))).relu()
    losses = [(features @ embedding.weight.T).square().mean(), head(features).square().mean()]
    assert found(losses, 2) is layer.weight


def test_with_separate_forwards_the_last_layer_that_all_losses_reach():
    # The output's weight is [1, 8], a vector.
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    assert found([net(batch(0)).square().mean(), net(batch(1)).square().mean()], 2) is net[0].weight


@pytest.mark.parametrize("together", [True, False])
def test_a_part_of_w_that_is_frozen_later_is_left_out(together):
    net = Net()
    layer = net.trunk[2]
    balancer = GradNorm(["a", "b", "c"], shared=layer, update="closed-form")
    for step in range(3):
        layer.bias.requires_grad_(step == 0)
        losses = net.losses(batch(step))
        present = losses if together or step == 0 else {"a": losses["a"]}
        expected = [torch.autograd.grad(v, layer.weight, retain_graph=True)[0].norm().item() for v in present.values()]
        balancer(present).backward()
        balancer.step()
        rows = [row for row in balancer.history.rows()[-3:] if row["norm"] == row["norm"]]
        if step:
            assert [row["norm"] / row["weight"] for row in rows] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.SiLU])
def test_with_a_derivative_of_the_same_forward_the_last_layer_too(activation):
    """Forces beside an energy, a critic beside its penalty: every layer is used once more in the derivative."""
    net = nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 8), activation())
    energy, x = nn.Linear(8, 1)(net(x := batch().requires_grad_())), x
    (forces,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    assert found([energy.square().mean(), forces.square().mean()], 2) is net[4].weight


def test_input_tensors_that_require_grad_are_no_layer():
    x = batch().requires_grad_()
    net = Net()
    assert found(list(net.losses(x).values()), 3) is net.last


def test_a_transformer_ends_in_its_last_block():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))
    features = trunk(torch.randn(2, 4, 8))
    assert found([h(features).square().mean() for h in heads], 3) is trunk.layers[-1].linear2.weight


@pytest.mark.parametrize(
    "joined",
    [
        lambda vector: torch.stack([vector]).squeeze(0),  # LibMTL
        lambda vector: torch.stack([vector], 1).squeeze(),
        lambda vector: vector.unsqueeze(-1).squeeze(-1),
        lambda vector: vector[None].squeeze(),
    ],
)
def test_a_vector_of_losses_with_another_dimension_is_looked_through(joined):
    trunk, heads = nn.Linear(6, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
    features, vector = trunk(batch()), torch.zeros(3)
    for i, head in enumerate(heads):
        vector[i] = (i + 1) * head(features).square().mean()
    losses = joined(vector).unbind()
    graph = AutogradGraph(losses)
    assert [graph.reach(head.weight) for head in heads] == [1, 2, 4]
    expected = [torch.autograd.grad(loss, trunk.weight, retain_graph=True)[0].norm() for loss in losses]
    balancer = GradNorm(3)
    balancer(losses).backward()
    balancer.step()
    measured = [balancer.log_dict()[f"gradnorm/norm/{task}"] for task in balancer.tasks]
    torch.testing.assert_close(torch.tensor(measured), torch.stack(expected))


def test_no_common_layer_is_an_error():
    a, b = nn.Linear(6, 1), nn.Linear(6, 1)
    with pytest.raises(GraphError, match=r"no layer is shared.*; check that all losses come from one network"):
        GradNorm(2)([a(batch()).sum(), b(batch()).sum()])


def test_a_loss_without_any_parameter_is_named():
    net = Net()
    losses = net.losses(batch())
    balancer = GradNorm([*losses, "norm"])
    with pytest.raises(GraphError, match=r"the loss of norm reaches no nn\.Parameter"):
        balancer({**losses, "norm": torch.zeros(3, requires_grad=True).sum()})


def test_where_only_vectors_are_shared_they_are_named():
    model = nn.ModuleDict({"scale": nn.LayerNorm(6), "heads": nn.ModuleList(nn.Linear(6, 1) for _ in range(2))})
    features = model["scale"](batch())
    losses = [head(features).square().mean() for head in model["heads"]]
    with pytest.raises(GraphError, match=r"smaller ones are \(.*scale.weight \(6,\).*\): give one as shared="):
        GradNorm(2, model=model)(losses)


def test_a_loss_that_keeps_the_others_from_a_common_layer_is_named():
    net, log_std = Net(), nn.Parameter(torch.zeros(2))  # a Gaussian policy: the entropy is that of log_std
    losses = net.losses(batch())
    balancer = GradNorm([*losses, "entropy"])
    with pytest.raises(GraphError, match="the loss of entropy does not reach: if that is meant, leave entropy out"):
        balancer({**losses, "entropy": -log_std.sum()})


class Levels(nn.Module):
    """A detector whose coarse level is made of the fine one; one convolution a level for both tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fine, self.coarse = (nn.Linear(6, 6) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(2))

    def losses(self, x, box_levels):
        fine = self.fine(self.trunk(x).tanh()).tanh()
        levels = [fine, self.coarse(fine).tanh()]
        outputs = [head(level) for head, level in zip(self.heads, levels, strict=True)]
        return {
            "box": torch.stack([(out[:, 0] - 1).square().mean() for out in outputs[:box_levels]]).sum(),
            "score": torch.stack([(out[:, 1] + 1).square().mean() for out in outputs]).sum(),
        }


def test_a_graph_in_which_a_task_does_not_reach_what_was_found_is_looked_at_again():
    torch.manual_seed(0)
    net = Levels()
    balancer = GradNorm(["box", "score"], model=net, update=Descent(lr=1e-6))
    for box_levels, found in ((2, ["coarse.weight"]), (1, ["coarse.weight", "fine.weight"])):
        losses = net.losses(batch(), box_levels)
        expected = [torch.autograd.grad(each, net.fine.weight, retain_graph=True)[0].norm() for each in losses.values()]
        net.zero_grad()
        balancer(losses).backward()
        balancer.step()
        assert list(balancer.shared_names) == found
    measured = [balancer.log_dict()[f"gradnorm/norm/{task}"] for task in losses]
    torch.testing.assert_close(torch.tensor(measured), torch.stack(expected), rtol=1e-4, atol=0)


def test_a_joined_head_that_starts_at_zero_is_a_head():
    torch.manual_seed(0)
    trunk, head = nn.Linear(6, 6), nn.Linear(6, 2)
    nn.init.zeros_(head.weight)
    model = nn.Sequential(trunk, nn.Tanh(), head)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    balancer = GradNorm(2, model=model, update="closed-form")
    for _ in range(3):
        out = model(batch())
        optimizer.zero_grad()
        balancer([(10 * out[:, 0] - 1).square().mean(), (out[:, 1] - 1).square().mean()]).backward()
        optimizer.step()
        balancer.step()
    assert list(balancer.shared_names) == ["0.weight"]
    assert balancer.weights[0] < balancer.weights[1]


def asleep_at_first():
    torch.manual_seed(0)
    net = AsleepAtFirst()
    return net, lambda: {"a": (losses := net.losses(list))["a"], "b": 100 * losses["b"]}


def norms_at(parameter, losses):
    grads = [torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses.values()]
    return torch.stack([grad.norm() for grad in grads])


def test_while_the_layer_is_asleep_the_ones_before_balance_the_first_step():
    net, losses = asleep_at_first()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    balancer = GradNorm(net.tasks, model=net, update="closed-form", alpha=0)
    norms = norms_at(net.last.weight, losses())
    balancer(losses()).backward()
    balanced = 2 / norms / (1 / norms).sum()
    torch.testing.assert_close(balancer.weights, balanced)
    optimizer.step()
    balancer.step()
    torch.testing.assert_close(balancer.weights, balanced)
    norms = norms_at(net.gate[1].weight, losses())
    assert norms.all()
    balancer(losses()).backward()
    balancer.step()
    assert list(balancer.shared_names) == ["gate.1.weight"]
    torch.testing.assert_close(balancer.weights, 2 / norms / (1 / norms).sum())


@pytest.mark.parametrize("options", [{"update": "closed-form", "alpha": 0}, {"initial_weights": "balanced"}])
def test_tasks_in_turn_are_balanced_once_the_layer_is_awake(options):
    net, losses = asleep_at_first()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    balancer = GradNorm(net.tasks, model=net, **options)
    balancer.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        for task in net.tasks:
            balancer({task: losses()[task]}).backward()
        norms = norms_at(net.gate[1].weight, losses())
        optimizer.step()
    assert list(balancer.shared_names) == ["gate.1.weight"]
    assert norms[0] < norms[1]
    assert balancer.weights[0] > 10 * balancer.weights[1]


def test_experts_wait_each_for_itself():
    """Each expert's branch is asleep in its first step, and the tenth is given as many steps as the first."""
    torch.manual_seed(0)
    count = PATIENCE + 4
    net = nn.ModuleDict({"trunk": nn.Linear(6, 8), "heads": nn.ModuleList(nn.Linear(8, 1) for _ in range(2))})
    net["experts"] = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
    net["scales"] = nn.ParameterList(torch.zeros(8) for _ in range(count))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    balancer = GradNorm(2, model=net)
    for step in range(2 * count):
        features = net["trunk"](batch())
        features = features + net["scales"][step % count] * net["experts"][step % count](features)
        optimizer.zero_grad()
        balancer([head(features).square().mean() for head in net["heads"]]).backward()
        optimizer.step()
        balancer.step()
    assert list(balancer.shared_names) == [f"experts.{i}.weight" for i in range(count)]


def test_a_dead_part_in_later_micro_batches_only_is_left():
    net, losses = asleep_at_first()
    net.norm.requires_grad_(False)
    balancer = GradNorm(net.tasks, model=net)
    for _ in range(70):  # more than the graphs that may add to W
        features = net.last(net.trunk(batch()))
        balancer({task: head(features).square().mean() for task, head in net.heads.items()}).backward()
        balancer(losses()).backward()
        balancer.step()
    assert list(balancer.shared_names) == ["last.weight"]


def test_layers_beyond_one_that_is_asleep_may_be_heads():
    """Columns of one output, refined by a layer whose result is multiplied by zero."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"trunk": nn.Linear(6, 8), "output": nn.Linear(8, 2), "refine": nn.Linear(2, 2)})
    balancer = GradNorm(2, model=net, update="closed-form", alpha=0)

    def losses():
        output = net["output"](net["trunk"](batch()))
        first, second = (output + 0 * net["refine"](output)).unbind(1)
        return [first.square().mean(), 10 * second.square().mean()]

    for _ in range(PATIENCE + 1):
        norms = norms_at(net["trunk"].weight, dict(enumerate(losses())))
        balancer(losses()).backward()
        torch.testing.assert_close(balancer.weights, 2 / norms / (1 / norms).sum())
        balancer.step()
    assert list(balancer.shared_names) == ["trunk.weight"]
    assert diagnose(losses(), model=net).layer == "trunk.weight (8, 6)"


def test_with_heads_of_zero_nothing_is_searched_for(monkeypatch):
    net = Net()
    for head in net.heads:
        nn.init.zeros_(head.weight)
    monkeypatch.setattr(FirstLook, "_beyond", None)
    with pytest.warns(RuntimeWarning, match="exactly zero at every layer"):
        GradNorm(3, update="closed-form")(list(net.losses(batch()).values())).backward()


def test_a_layer_that_was_asleep_is_found_in_another_graph():
    net, losses = asleep_at_first()
    balancer = GradNorm(net.tasks, model=net, update="closed-form")
    more = losses()
    balancer({**more, "a": more["a"] + nn.Linear(3, 3).weight.square().sum()}).backward()
    balancer.step()
    nn.init.ones_(net.norm.weight)
    balancer(losses()).backward()
    assert list(balancer.shared_names) == ["gate.1.weight"]


@pytest.mark.parametrize("backwards", [1, 2])
def test_a_layer_that_does_not_wake_is_left(backwards):
    net, losses = asleep_at_first()
    net.norm.requires_grad_(False)
    balancer = GradNorm(net.tasks, model=net, update=Descent(lr=1e-6))
    found = []
    for _ in range(PATIENCE + 2):
        for _ in range(backwards):
            balancer(losses()).backward()
        balancer.step()
        found.append(*balancer.shared_names)
    assert found == ["gate.1.weight"] * PATIENCE + ["last.weight"] * 2
    measured = torch.tensor([balancer.log_dict()[f"gradnorm/norm/{task}"] for task in net.tasks])
    torch.testing.assert_close(measured, norms_at(net.last.weight, losses()), rtol=1e-4, atol=0)


def test_a_layer_that_does_not_wake_is_kept_where_none_before_it_can_be_told(monkeypatch):
    net, losses = asleep_at_first()
    net.norm.requires_grad_(False)
    monkeypatch.setattr(FirstLook, "_beyond", lambda *_: None)
    balancer = GradNorm(net.tasks, model=net, alpha=0)
    for step in range(PATIENCE + 2):
        balancer(losses()).backward()
        balancer.step()
        assert balancer._measurement.layer.is_confirmed == (step >= PATIENCE)
    assert list(balancer.shared_names) == ["gate.1.weight"]


@pytest.mark.parametrize("backwards", [1, 2])
def test_a_layer_that_does_not_wake_is_left_by_tasks_in_turn(backwards):
    net, losses = asleep_at_first()
    net.norm.requires_grad_(False)
    balancer = GradNorm(net.tasks, model=net, update="closed-form", alpha=0)
    for step in range(2 * PATIENCE + 4):
        for backward in range(backwards):
            task = net.tasks[(step + backward) % 2]
            balancer({task: losses()[task]}).backward()
        balancer.step()
    assert list(balancer.shared_names) == ["last.weight"]
    norms = norms_at(net.last.weight, losses())
    torch.testing.assert_close(balancer.weights, 2 / norms / (1 / norms).sum(), rtol=1e-3, atol=0)


def test_an_error_while_layers_are_looked_for_leaves_the_layer_as_it_was(monkeypatch):
    net, losses = asleep_at_first()
    balancer = GradNorm(net.tasks, model=net, update="closed-form", alpha=0)
    measured, calls = FirstLook._measured, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 2:  # at the layers before
            raise KeyboardInterrupt
        return measured(self, *args)

    monkeypatch.setattr(FirstLook, "_measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        balancer(losses()).backward()
    nn.init.ones_(net.norm.weight)
    balancer(losses()).backward()
    assert list(balancer.shared_names) == ["gate.1.weight"]


@pytest.mark.filterwarnings("ignore:the gradient of .* is exactly zero:RuntimeWarning")
@pytest.mark.parametrize("where", ["zero head", "asleep"])
def test_functions_before_w_that_can_run_only_once_run_once(where):
    torch.manual_seed(0)
    stem, last, heads = nn.Linear(6, 8), nn.Linear(8, 8), nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
    scale = 0.0 if where == "asleep" else 1.0
    if where == "zero head":
        nn.init.zeros_(heads[0].weight)

    def losses():
        features = SavedInPlace.apply(stem(batch()))
        features = features + scale * last(features)
        return [(head(features) - 1).square().mean() for head in heads]

    (expected,) = torch.autograd.grad(sum(losses()), stem.weight)
    GradNorm(2)(losses()).backward()
    torch.testing.assert_close(stem.weight.grad, expected)


@pytest.mark.filterwarnings("ignore:the gradient of .* is exactly zero:RuntimeWarning")
def test_reentrant_checkpoints_before_w_are_left_alone():
    torch.manual_seed(0)
    stem, last, heads = nn.Linear(6, 8), nn.Linear(8, 8), nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
    nn.init.zeros_(heads[0].weight)
    features = last(checkpoint(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), stem(batch()), use_reentrant=True))
    balancer = GradNorm(2)
    balancer([(head(features) - 1).square().mean() for head in heads]).backward()
    assert balancer.shared == (last.weight,)


@pytest.mark.filterwarnings("ignore:the gradient of .* is exactly zero:RuntimeWarning")
def test_hooks_on_layers_fire_once_in_the_first_backward():
    net = Net()
    nn.init.zeros_(net.heads[0].weight)
    fired = []
    for parameter in net.trunk.parameters():
        parameter.register_hook(lambda _: fired.append(1))
    GradNorm(list("abc"))(net.losses(batch())).backward()
    assert len(fired) == len(list(net.trunk.parameters()))


def test_a_diagnosis_is_of_layers_that_are_awake():
    net, losses = asleep_at_first()
    diagnosis = diagnose(losses(), model=net)
    assert diagnosis.layer == "last.weight (8, 8)"
    torch.testing.assert_close(diagnosis.norms, norms_at(net.last.weight, losses()).cpu())


def test_a_diagnosis_keeps_a_part_that_is_asleep_beside_others_and_calls_no_hooks():
    torch.manual_seed(0)
    net = nn.ModuleDict({"awake": nn.Linear(6, 8), "asleep": nn.Linear(6, 8)})
    heads, fired = nn.ModuleList(nn.Linear(8, 1) for _ in range(2)), []
    for layer in net.values():
        layer.weight.register_hook(lambda _: fired.append(1))
    features = net["awake"](batch()) + 0 * net["asleep"](batch())
    diagnosis = diagnose([(head(features) - 1).square().mean() for head in heads], model=net)
    assert diagnosis.layer == "awake.weight (8, 6), asleep.weight (8, 6)"
    assert not fired


def test_heads_that_a_later_graph_shows_first_are_recognized():
    torch.manual_seed(0)
    net = Levels()
    balancer = GradNorm(["box", "score"], model=net)
    for levels in (1, 2, 2):
        x = batch()
        both = zip((net.fine, net.coarse), net.heads, strict=True)
        outputs = [head(level(net.trunk(x)).tanh()) for level, head in both][:levels]
        net.zero_grad()
        balancer([sum((out[:, i] - 1).square().mean() for out in outputs) for i in range(2)]).backward()
        balancer.step()
    assert list(balancer.shared_names) == ["fine.weight", "coarse.weight"]


@pytest.mark.parametrize(
    "named",
    [
        lambda net: {"shared": net.last},
        lambda net: {"shared": [net.last]},
        lambda net: {"shared": "trunk.2.weight", "model": net},
        lambda net: {"shared": "trunk.2.w*", "model": net},
    ],
)
def test_ways_to_name_one_parameter(named):
    net = Net()
    assert GradNorm(3, **named(net)).shared == (net.last,)


def test_a_module_means_all_its_trainable_parameters():
    net = Net()
    net.trunk[0].requires_grad_(False)
    assert GradNorm(3, shared=net.trunk).shared == (net.trunk[2].weight, net.trunk[2].bias)


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (lambda net: nn.ReLU(), "shared: ReLU has no trainable parameter"),
        (lambda net: [], "shared is empty"),
        (lambda net: 3, "shared must be a parameter"),
        (lambda net: ["trunk"], "shared must hold parameters, got str"),
        (lambda net: net.last.detach(), "frozen"),
        (lambda net: net.last * 2, "not a parameter"),
        (lambda net: "trunk.*", "give model="),
    ],
)
def test_what_cannot_be_w_is_refused(shared, message):
    with pytest.raises(ArgumentError, match=message):
        GradNorm(3, shared=shared(Net()))


def test_a_pattern_without_a_match_lists_the_names():
    with pytest.raises(ArgumentError, match=r"matches no trainable parameter of Net; it has trunk\.0\.weight"):
        GradNorm(3, shared="encoder.*", model=Net())


def test_w_outside_the_graph():
    with pytest.raises(GraphError, match="no loss reaches W"):
        GradNorm(["a", "b", "c"], shared=nn.Linear(8, 8))(Net().losses(batch()))


def test_a_task_that_does_not_reach_w_is_named():
    net, other = Net(), nn.Linear(6, 1)
    losses = net.losses(batch()) | {"b": other(batch()).sum()}
    with pytest.raises(GraphError, match="task 'b' does not reach W"):
        GradNorm(["a", "b", "c"], shared=net.last)(losses)


def test_names_are_those_of_the_model():
    net = Net()
    balancers = [GradNorm(3, model=net), GradNorm(3), GradNorm(3, shared="trunk.*.weight", model=net)]
    assert balancers[0].shared_names is None
    for balancer in balancers:
        balancer(list(net.losses(batch()).values())).backward()
    assert balancers[0].shared_names == ("trunk.2.weight",)
    assert balancers[1].shared_names == ("a parameter (8, 8)",)
    assert balancers[2].shared_names == ("trunk.0.weight", "trunk.2.weight")


def test_a_task_that_misses_the_layer_that_was_found_is_told_so():
    net, other = Net(), nn.Linear(6, 1)
    balancer = GradNorm(["a", "b", "c"], model=net)
    balancer(net.losses(batch())).backward()
    losses = net.losses(batch()) | {"b": other(batch()).sum()}
    with pytest.raises(GraphError, match=r"'b' does not reach the detected layer \(trunk\.2\.weight \(8, 8\)\)"):
        balancer(losses)
