"""Rewards are scaled as said, and a resumed run continues its episodes and its replay buffer."""

import io
import math
from dataclasses import replace

import torch

from gradnorm_studies.control import dqn
from gradnorm_studies.control.dqn import Agent, RlConfig, World, random_actions
from gradnorm_studies.control.environments import ENVIRONMENTS, INPUTS, TASKS, Transitions
from gradnorm_studies.control.study import PROBLEM, Rl
from gradnorm_studies.engine.study import Job
from gradnorm_studies.engine.training import train

CONFIG = RlConfig(
    seeds=1, steps=60, record_every=30, num_envs=2, batch=8, buffer_size=64, learning_starts=8, eval_episodes=1
)


def agent(method="equal", seed=0, **changes):
    torch.manual_seed(seed)
    return Agent(replace(CONFIG, **changes), Job(PROBLEM, method, seed, 1e-3))


def actions(n, seed=0):
    return random_actions(n, torch.Generator().manual_seed(seed))


def test_rewards_of_random_play_differ_a_hundredfold_as_the_report_says():
    world = World(replace(CONFIG, buffer_size=600), seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        world.step(random_actions(2, generator))
    rewards = world.sample(600, generator).rewards.mean(1)
    scaled = rewards * torch.tensor([spec.scale for spec in ENVIRONMENTS])
    torch.testing.assert_close(scaled, torch.tensor([0.05, -0.5, -6.0]), rtol=0.15, atol=0)
    assert scaled.abs().max() / scaled.abs().min() > 100


def test_targets_use_scaled_rewards_and_do_not_bootstrap_where_episodes_terminate():
    found = agent(discount=0.5)
    n = 4
    inputs = torch.randn(2, len(TASKS), n, INPUTS)
    terminated = torch.tensor([True, False, True, False]).expand(len(TASKS), n)
    batch = Transitions(inputs[0], actions(n), torch.full((len(TASKS), n), -2.0), inputs[1], terminated, terminated)
    with torch.no_grad():
        for p in found.model.target.parameters():
            p.mul_(2)
    online, target = found.model.online(inputs[1]), found.model.target(inputs[1])
    targets = found._targets(batch)
    for i, spec in enumerate(ENVIRONMENTS):
        for k in range(n):
            future = 0.0 if terminated[i, k] else 0.5 * target[i][k, online[i][k].argmax()].item()
            assert math.isclose(targets[i, k].item(), -2 * spec.scale + future, rel_tol=1e-5, abs_tol=1e-6)


def test_a_world_resumes_from_its_state_bitwise():
    world = World(CONFIG, seed=0)
    for step in range(40):
        world.step(actions(2, step))
    other = World(CONFIG, seed=0)
    file = io.BytesIO()
    torch.save(world.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(40, 80):
        for each in (world, other):
            each.step(actions(2, step))
        assert torch.equal(world.inputs, other.inputs)
    drawn = [each.sample(64, torch.Generator().manual_seed(1)) for each in (world, other)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_the_replay_buffer_overwrites_the_oldest_transitions():
    world = World(replace(CONFIG, buffer_size=6), seed=0)
    seen = []
    for step in range(8):
        seen.append(world.inputs)
        world.step(actions(2, step))
    inputs = world.sample(200, torch.Generator().manual_seed(0)).inputs
    for task in range(len(TASKS)):
        stored = {tuple(row) for row in inputs[task].tolist()}
        assert stored == {tuple(row) for each in seen[-3:] for row in each[task].tolist()}


def test_a_resumed_run_is_the_same_though_its_episodes_began_before(tmp_path):
    job = Job(PROBLEM, "gradnorm", 0, 1e-3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    study = Rl(CONFIG)
    assert train(study, job, whole, lambda step: False)
    assert not train(study, job, parts, lambda step: step == 40)
    assert train(study, job, parts, lambda step: False)
    name = f"{job.file_name}.json"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_single_shares_nothing_and_the_others_a_trunk():
    for method, shared in (("single", False), ("equal", True)):
        found = agent(method)
        first = found.losses(0)[0]
        trunk = list(found.model.online.trunks[-1].parameters())
        gradients = torch.autograd.grad(first, trunk)
        assert all(bool(g.any()) == shared for g in gradients)


def test_the_target_network_follows_and_is_not_trained():
    found = agent(tau=0.25)
    online, target = found.model.online.heads[0].bias, found.model.target.heads[0].bias
    before = target.clone()
    with torch.no_grad():
        online += 1
    found.losses(0).sum().backward()
    assert target.grad is None
    torch.testing.assert_close(target, before + 0.25)


def test_epsilon_falls_from_one_to_a_twentieth(monkeypatch):
    found = agent(steps=100, exploration_fraction=0.5)
    monkeypatch.setattr(dqn, "greedy", lambda values: torch.full((len(values), 2000), -1))
    monkeypatch.setattr(type(found.world), "inputs", torch.zeros(len(TASKS), 1, INPUTS))
    monkeypatch.setattr(found, "_config", replace(found._config, num_envs=2000))
    for step, epsilon in ((0, 1.0), (25, 0.525), (50, 0.05), (99, 0.05)):
        tried = found._explore(step, torch.Generator().manual_seed(0)) >= 0
        assert abs(tried.double().mean().item() - epsilon) < 0.03
