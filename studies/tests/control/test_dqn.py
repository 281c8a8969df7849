"""Targets, the target network and exploration are DQN's."""

import math
from dataclasses import replace

import torch

from gradnorm_studies.control import dqn
from gradnorm_studies.control.environments import GAMES, INPUTS, Transitions, random_actions

from .agents import agent


def test_targets_use_the_games_rewards_and_end_where_episodes_terminate():
    found = agent("DQN", discount=0.5)
    n = 4
    inputs = torch.randn(2, len(GAMES), n, INPUTS)
    terminated = torch.tensor([True, False, True, False]).expand(len(GAMES), n)
    chosen = random_actions(n, torch.Generator().manual_seed(0))
    batch = Transitions(inputs[0], chosen, torch.full((len(GAMES), n), -2.0), inputs[1], terminated, ~terminated)
    with torch.no_grad():
        for p in found.networks.target.parameters():
            p.mul_(2)
    online, target = found.networks.online(inputs[1]), found.networks.target(inputs[1])
    targets = found._targets(batch)
    for i in range(len(GAMES)):
        for k in range(n):
            future = 0.0 if terminated[i, k] else 0.5 * target[i][k, online[i][k].argmax()].item()
            assert math.isclose(targets[i, k].item(), -2 + future, rel_tol=1e-5, abs_tol=1e-6)


def test_the_target_network_follows_and_is_not_trained():
    found = agent("DQN", tau=0.25)
    online, target = found.networks.online.heads[0].bias, found.networks.target.heads[0].bias
    before = target.clone()
    with torch.no_grad():
        online += 1
    found.losses(0).sum().backward()
    assert target.grad is None
    torch.testing.assert_close(target, before + 0.25)
    trained = {id(p) for group in found.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in found.networks.online.parameters()}


def test_epsilon_falls_from_one_to_a_twentieth(monkeypatch):
    found = agent("DQN", steps=100, exploration_fraction=0.5)
    monkeypatch.setattr(dqn, "greedy", lambda values: torch.full((len(values), 2000), -1))
    monkeypatch.setattr(type(found.environments), "inputs", torch.zeros(len(GAMES), 1, INPUTS))
    monkeypatch.setattr(found, "config", replace(found.config, num_envs=2000))
    for step, epsilon in ((0, 1.0), (25, 0.525), (50, 0.05), (99, 0.05)):
        tried = found._explore(step, torch.Generator().manual_seed(0)) >= 0
        assert abs(tried.double().mean().item() - epsilon) < 0.03
