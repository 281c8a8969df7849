"""The rule, equation by equation, over nasty inputs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradnorm import functional as rule

SCALES = st.floats(1e-10, 1e10)


@st.composite
def per_task(draw, *, count=None):
    """[T] positive numbers over twenty orders of magnitude, T = 2 … 64."""
    count = draw(st.integers(2, 64)) if count is None else count
    return torch.tensor(draw(st.lists(SCALES, min_size=count, max_size=count)), dtype=torch.float64)


@st.composite
def states(draw):
    """Weights of sum T, raw norms, losses, initial losses."""
    count = draw(st.integers(2, 64))
    weights = torch.tensor(draw(st.lists(st.floats(1e-4, 1.0), min_size=count, max_size=count)), dtype=torch.float64)
    return rule.renormalize(weights, count), *(draw(per_task(count=count)) for _ in range(3))


@settings(deadline=None)
@given(states(), st.floats(0, 3))
def test_weight_gradients_are_those_of_double_backward(state, alpha):
    weights, raw_norms, losses, initial = state
    weights = weights.clone().requires_grad_()
    G = rule.gradient_norms(weights, raw_norms)
    rates = rule.inverse_training_rates(rule.loss_ratios(losses, initial))
    targets = rule.target_norms(rule.mean_gradient_norm(G), rates, alpha).detach()
    (wanted,) = torch.autograd.grad(rule.gradnorm_loss(G, targets), weights)
    torch.testing.assert_close(rule.weight_gradients(G, targets, raw_norms), wanted)


@settings(deadline=None)
@given(per_task(), st.floats(1e-6, 1e-2))
def test_renormalized_weights_sum_to_the_total_and_are_positive(weights, min_weight):
    after = rule.renormalize(weights - weights.mean(), float(len(weights)), min_weight)
    torch.testing.assert_close(after.sum().item(), float(len(weights)))
    assert (after > 0).all()


@settings(deadline=None)
@given(per_task())
def test_rates_average_one_and_keep_the_order_of_the_losses(losses):
    rates = rule.inverse_training_rates(rule.loss_ratios(losses, torch.ones_like(losses)))
    torch.testing.assert_close(rates.mean().item(), 1.0)
    assert rates[losses.argmax()] == rates.max()


@settings(deadline=None)
@given(states(), SCALES)
def test_a_common_factor_of_the_losses_changes_no_rate(state, factor):
    _, _, losses, initial = state
    rates = [rule.inverse_training_rates(rule.loss_ratios(f * losses, f * initial)) for f in (1.0, factor)]
    torch.testing.assert_close(*rates)


@settings(deadline=None)
@given(states(), st.floats(0.01, 3))
def test_of_two_tasks_with_one_norm_the_slower_has_the_larger_target(state, alpha):
    _, raw_norms, losses, initial = state
    rates = rule.inverse_training_rates(rule.loss_ratios(losses, initial))
    targets = rule.target_norms(rule.mean_gradient_norm(raw_norms), rates, alpha)
    torch.testing.assert_close(targets[rates.argmax()], targets.max())


def test_alpha_zero_gives_all_tasks_the_mean_norm():
    rates = torch.tensor([0.0, 0.5, 2.5])
    assert rule.target_norms(torch.tensor(3.0), rates, 0.0).tolist() == [3.0, 3.0, 3.0]


def test_initial_mean_takes_the_first_usable_losses():
    sums, counts = torch.zeros(2), torch.zeros(2)
    for losses in ([1.0, torch.nan], [3.0, 0.0], [100.0, 5.0], [100.0, -1.0], [100.0, 7.0], [9.0, 9.0]):
        sums, counts = rule.initial_mean(torch.tensor(losses), sums, counts, steps=2)
    assert (sums / counts).tolist() == [2.0, 6.0]
