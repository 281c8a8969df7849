"""Losses, advantages and rollouts are PPO's."""

import torch

from gradnorm_studies.control.environments import ENVIRONMENTS, GAMES, Transitions
from gradnorm_studies.control.ppo import KINDS, RolloutBuffer, generalized_advantages

from .agents import CONFIG, agent


def kinds(losses):
    """[2 G] → by kind, [G]."""
    return dict(zip(KINDS, losses.detach().unflatten(0, (len(KINDS), len(GAMES))), strict=True))


def episode(rewards, terminated=(), truncated=()):
    """Transitions of one copy of all games with these rewards."""
    played = Transitions.zeros(len(GAMES), len(rewards), 1)
    played.rewards[:] = torch.tensor(rewards).unsqueeze(1)
    for t in terminated:
        played.terminated[:, t] = True
    for t in (*terminated, *truncated):
        played.done[:, t] = True
    return played


def advantages(played, values, following, lam=0.5):
    values, following = (torch.tensor(x).view(1, -1, 1).expand(len(GAMES), -1, 1) for x in (values, following))
    return generalized_advantages(played, values, following, discount=0.5, lam=lam)[0, :, 0].tolist()


def test_advantages_pass_later_errors_on_by_gamma_lambda():
    # errors: 1 + 0.5·2 − 1 = 1, 1 + 0.5·4 − 2 = 1
    assert advantages(episode([1.0, 1.0]), [1.0, 2.0], [2.0, 4.0]) == [1 + 0.25 * 1, 1]


def test_where_an_episode_terminates_nothing_follows():
    # errors: 1 + 0 − 1 = 0, then 1
    assert advantages(episode([1.0, 1.0], terminated=[0]), [1.0, 2.0], [2.0, 4.0]) == [0, 1]


def test_where_an_episode_is_cut_off_the_value_counts_but_no_error_of_the_next_one():
    assert advantages(episode([1.0, 1.0], truncated=[0]), [1.0, 2.0], [2.0, 4.0]) == [1, 1]


def test_with_lambda_1_advantages_are_discounted_returns_less_values():
    found = advantages(episode([1.0, 2.0, 4.0], terminated=[2]), [3.0, 5.0, 7.0], [5.0, 7.0, 9.0], lam=1.0)
    assert found == [1 + 1 + 1 - 3, 2 + 2 - 5, 4 - 7]


def test_a_policy_loss_holds_the_entropy_which_is_known_for_uniform_policies():
    found = agent("PPO", minibatch=32)
    with torch.no_grad():
        for head in found.network.policies:
            head.weight.zero_()
            head.bias.zero_()
    counts = torch.tensor([len(spec.actions) for spec in ENVIRONMENTS], dtype=torch.float32)
    expected = -CONFIG.entropy_coefficient * counts.log()  # advantages are 0 on average over the whole rollout
    torch.testing.assert_close(kinds(found.losses(0))["policy"], expected)


def test_a_better_action_than_expected_becomes_more_probable_until_clipped():
    found = agent("PPO", minibatch=32, entropy_coefficient=0.0)
    found.losses(0)
    rollout = found.buffer.rollout
    found.buffer.rollout = rollout._replace(advantages=torch.ones_like(rollout.advantages))
    torch.testing.assert_close(kinds(found.losses(1))["policy"], torch.full((len(GAMES),), -1.0))
    for factor, loss in ((0.9, -0.9), (1.1, -1.1), (1.5, -1 - CONFIG.clip)):
        changed = rollout.log_probs - torch.tensor(factor).log()
        found.buffer.rollout = found.buffer.rollout._replace(log_probs=changed)
        torch.testing.assert_close(kinds(found.losses(1))["policy"], torch.full((len(GAMES),), loss))


def test_policy_losses_are_of_either_sign():
    found = agent("PPO")
    policies = torch.stack([kinds(found.losses(step))["policy"] for step in range(8)])
    assert (policies > 0).any()
    assert (policies < 0).any()


def test_values_learn_the_returns():
    found = agent("PPO", minibatch=32)
    found.losses(0)
    batch = found.buffer.rollout
    values = found.network(batch.inputs)[1]
    expected = CONFIG.value_coefficient * (values - batch.returns).square().mean(1)
    torch.testing.assert_close(kinds(found.losses(1))["value"], expected.detach())


def test_a_rollout_is_replaced_after_its_updates():
    found = agent("PPO")
    seen = []
    for step in range(2 * CONFIG.updates):
        found.losses(step)
        seen.append(found.buffer.rollout)
    assert all(rollout is seen[0] for rollout in seen[: CONFIG.updates])
    assert all(rollout is seen[-1] for rollout in seen[CONFIG.updates :])
    assert not torch.equal(seen[0].inputs, seen[-1].inputs)


def test_advantages_are_normalized_by_game():
    found = agent("PPO")
    found.losses(0)
    rollout = found.buffer.rollout
    torch.testing.assert_close(rollout.advantages.mean(1), torch.zeros(len(GAMES)), atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.advantages.std(1), torch.ones(len(GAMES)))
    assert rollout.returns[-1].mean() < rollout.returns[0].mean()  # the games' own rewards


def test_a_minibatch_takes_the_same_places_of_every_field_without_repeating_one():
    buffer = RolloutBuffer(12)
    for field in buffer.rollout:
        field += torch.arange(12).view(1, 12, *[1] * (field.dim() - 2))
    batch = buffer.sample(12, torch.Generator().manual_seed(0))
    assert sorted(batch.actions[0].tolist()) == list(range(12))
    assert torch.equal(batch.actions.float(), batch.returns)
    assert torch.equal(batch.actions.float(), batch.inputs[:, :, 0])
