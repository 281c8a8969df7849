"""One battery for everything that balances: a new method adds a line to `METHODS` and inherits it."""

import pytest
import torch
from torch import nn

from gradnorm_studies.weightings import METHODS, MOVING, Weighting, WeightingConfig, weighting

TASKS = ("a", "b", "c")


@pytest.fixture(params=sorted(METHODS))
def built(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Weighting]:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 5), nn.Linear(5, 3)
    return trunk, heads, build(request.param, trunk)


def build(method, trunk):
    return weighting(method, WeightingConfig(TASKS, trunk, alpha=1.0, weight_lr=0.025, fixed=(0.5, 1.0, 1.5), epoch=3))


class Training:
    """A network under a weighting; every step's batch depends on the step alone."""

    def __init__(self, method):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.weighting = build(method, self.net[0])
        self.optimizer = torch.optim.Adam([*self.net.parameters(), *self.weighting.parameters()], lr=0.01)
        self.traces = []

    def train(self, first, last):
        for step in range(first, last):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            losses = (self.net(x) - torch.tensor([1.0, 10.0, 0.1])).square().mean(0)
            self.optimizer.zero_grad()
            self.weighting(losses).backward()
            self.optimizer.step()
            self.weighting.step()
            self.traces.append(self.weighting.weights.clone())
        return self

    def state(self):
        return [part.state_dict() for part in (self.net, self.weighting, self.optimizer)]


@pytest.fixture(params=sorted(METHODS))
def method(request):
    return request.param


@pytest.mark.parametrize("cut", [0, 4, 8])
def test_interrupted_and_resumed_is_uninterrupted_bitwise(method, cut, tmp_path):
    whole = Training(method).train(0, 12)
    torch.save(Training(method).train(0, cut).state(), tmp_path / "state")
    resumed = Training(method)
    for part, state in zip(
        (resumed.net, resumed.weighting, resumed.optimizer), torch.load(tmp_path / "state"), strict=True
    ):
        part.load_state_dict(state)
    resumed.train(cut, 12)
    assert all(map(torch.equal, whole.net.parameters(), resumed.net.parameters()))
    assert torch.equal(whole.weighting.weights, resumed.weighting.weights)
    assert torch.equal(whole.weighting.averaged_weights(), resumed.weighting.averaged_weights())


def test_weights_stay_finite_and_positive(method):
    traces = torch.stack(Training(method).train(0, 30).traces)
    assert torch.isfinite(traces).all()
    assert (traces > 0).all()
    moves = traces.std(0).max() > 1e-3
    assert moves == (method in MOVING)


def test_dwa_is_that_of_torchjd():
    from torchjd.scalarization import DWA

    ours, theirs = build("dwa", nn.Linear(4, 5)), DWA(temperature=2.0)
    torch.manual_seed(0)
    for step in range(12):
        values = torch.rand(3) * 0.9**step
        torch.testing.assert_close(ours(values), theirs(values))
        ours.step()
        if step % 3 == 2:
            theirs.step()
    assert (ours.weights - 1).abs().max() > 0.01


def test_values_in_scalar_out_weights_recorded(built):
    trunk, heads, method = built
    out = heads(trunk(torch.ones(2, 4)))
    losses = torch.stack([(out[:, i] - i).square().mean() for i in range(3)])
    loss = method(losses)
    loss.backward()
    method.step()
    assert loss.shape == ()
    assert trunk.weight.grad.abs().sum() > 0
    assert method.weights.shape == (3,)
    assert not method.weights.requires_grad
    assert method.averaged_weights().shape == (3,)


def test_the_gradient_is_that_of_the_sum_with_the_weights_that_are_recorded(built, method):
    """All but random weights, which are recorded as their mean."""
    if method == "random":
        return
    trunk, _, _ = built
    weighting = build(method, trunk)
    scales = torch.tensor([1.0, 2.0, 3.0])
    losses = torch.stack([(trunk.weight.square().sum() + trunk.bias.sum()) * scale for scale in scales])
    weighting(losses).backward()
    first = torch.autograd.grad((trunk.weight.square().sum() + trunk.bias.sum()), trunk.weight)[0]
    torch.testing.assert_close(trunk.weight.grad, (weighting.weights * scales).sum() * first)


def test_divided_losses_are_one_at_first_and_fall_with_them():
    weighting = build("divided", nn.Linear(4, 5))
    assert weighting(torch.tensor([2.0, 4.0, 8.0])) == 3
    assert weighting(torch.tensor([1.0, 2.0, 4.0])) == 1.5


def test_random_weights_are_positive_sum_to_one_and_change_with_step_and_seed():
    layer = nn.Linear(1, 1)

    def drawn(seed, steps):
        weighting = METHODS["random"](WeightingConfig(TASKS, layer, 1.0, 0.1, seed=seed))
        found = []
        for _ in range(steps):
            found.append(torch.stack([weighting(row) for row in torch.eye(3)]))
            weighting.step()
        return torch.stack(found)

    before = torch.random.get_rng_state()
    weights = drawn(0, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], drawn(1, 1)[0])


def test_an_unknown_method_is_named_with_the_choices():
    setting = WeightingConfig(TASKS, nn.Linear(1, 1), alpha=1.0, weight_lr=0.1)
    with pytest.raises(ValueError, match=r"'gradnrom'.*gradnorm"):
        weighting("gradnrom", setting)


def test_static_without_weights_says_what_is_missing():
    setting = WeightingConfig(TASKS, nn.Linear(1, 1), alpha=1.0, weight_lr=0.1)
    with pytest.raises(ValueError, match="needs weights"):
        weighting("static", setting)
