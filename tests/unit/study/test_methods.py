"""Every weighting obeys one protocol."""

import pytest
import torch
from torch import nn

from gradnorm.study.methods import METHODS, Setting, Weighting, weighting

TASKS = ("a", "b", "c")


@pytest.fixture(params=sorted(METHODS))
def built(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Weighting]:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 5), nn.Linear(5, 3)
    setting = Setting(TASKS, trunk, alpha=1.0, weight_lr=0.025, fixed=(0.5, 1.0, 1.5))
    return trunk, heads, weighting(request.param, setting)


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


def test_the_scalar_is_the_weighted_sum_whose_weights_are_recorded(built):
    trunk, _, method = built
    scales = torch.tensor([1.0, 2.0, 3.0])
    method(torch.stack([trunk.weight.sum() * scale for scale in scales])).backward()
    torch.testing.assert_close(trunk.weight.grad, (method.weights * scales).sum().expand(5, 4))


def test_an_unknown_method_is_named_with_the_choices():
    setting = Setting(TASKS, nn.Linear(1, 1), alpha=1.0, weight_lr=0.1)
    with pytest.raises(ValueError, match=r"'gradnrom'.*gradnorm"):
        weighting("gradnrom", setting)


def test_static_without_weights_says_what_is_missing():
    setting = Setting(TASKS, nn.Linear(1, 1), alpha=1.0, weight_lr=0.1)
    with pytest.raises(ValueError, match="needs weights"):
        weighting("static", setting)
