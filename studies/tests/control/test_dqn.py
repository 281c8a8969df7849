"""Rewards are scaled as said, and a run that was stopped goes on with its games and its memory."""

import io
import math
from dataclasses import replace

import torch

from gradnorm_studies.control import dqn
from gradnorm_studies.control.dqn import Agent, RlConfig, World, random_actions
from gradnorm_studies.control.environments import GAMES, INPUTS, TASKS, Moves
from gradnorm_studies.control.study import PROBLEM, Rl
from gradnorm_studies.engine.study import Job
from gradnorm_studies.engine.training import train

CONFIG = RlConfig(seeds=1, steps=60, record_every=30, copies=2, batch=8, memory=64, warm_up=8, test_games=1)


def agent(method="equal", seed=0, **changes):
    torch.manual_seed(seed)
    return Agent(replace(CONFIG, **changes), Job(PROBLEM, method, seed, 1e-3))


def actions(copies, seed=0):
    return random_actions(copies, torch.Generator().manual_seed(seed))


def test_rewards_of_random_play_differ_a_hundredfold_as_the_report_says():
    world = World(replace(CONFIG, memory=600), seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        world.move(random_actions(2, generator))
    rewards = world.sample(600, generator).rewards.mean(1)
    scaled = rewards * torch.tensor([task.scale for task in GAMES])
    torch.testing.assert_close(scaled, torch.tensor([0.05, -0.5, -6.0]), rtol=0.15, atol=0)
    assert scaled.abs().max() / scaled.abs().min() > 100


def test_temporal_differences_use_scaled_rewards_and_stop_where_games_end():
    found = agent(discount=0.5)
    n = 4
    inputs = torch.randn(2, len(TASKS), n, INPUTS)
    ended = torch.tensor([True, False, True, False]).expand(len(TASKS), n)
    moves = Moves(inputs[0], actions(n), torch.full((len(TASKS), n), -2.0), inputs[1], ended, ended)
    with torch.no_grad():
        for p in found.model.slow.parameters():
            p.mul_(2)
    learned, rated = found.model.learning(inputs[1]), found.model.slow(inputs[1])
    targets = found._targets(moves)
    for i, task in enumerate(GAMES):
        for k in range(n):
            future = 0.0 if ended[i, k] else 0.5 * rated[i][k, learned[i][k].argmax()].item()
            assert math.isclose(targets[i, k].item(), -2 * task.scale + future, rel_tol=1e-5, abs_tol=1e-6)


def test_a_world_goes_on_from_its_state_bitwise():
    world = World(CONFIG, seed=0)
    for step in range(40):
        world.move(actions(2, step))
    other = World(CONFIG, seed=0)
    file = io.BytesIO()
    torch.save(world.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(40, 80):
        for each in (world, other):
            each.move(actions(2, step))
        assert torch.equal(world.inputs, other.inputs)
    drawn = [each.sample(64, torch.Generator().manual_seed(1)) for each in (world, other)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_memory_forgets_the_oldest_and_joins_before_and_after():
    world = World(replace(CONFIG, memory=6), seed=0)
    seen = []
    for step in range(8):
        seen.append(world.inputs)
        world.move(actions(2, step))
    before = world.sample(200, torch.Generator().manual_seed(0)).before
    for task in range(len(TASKS)):
        remembered = {tuple(row) for row in before[task].tolist()}
        assert remembered == {tuple(row) for inputs in seen[-3:] for row in inputs[task].tolist()}


def test_a_resumed_run_is_the_same_though_its_games_began_before(tmp_path):
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
        trunk = list(found.model.learning.trunks[-1].parameters())
        gradients = torch.autograd.grad(first, trunk)
        assert all(bool(g.any()) == shared for g in gradients)


def test_the_slow_copy_follows_and_is_not_trained():
    found = agent(slow_rate=0.25)
    learning, slow = found.model.learning.heads[0].bias, found.model.slow.heads[0].bias
    before = slow.clone()
    with torch.no_grad():
        learning += 1
    found.losses(0).sum().backward()
    assert slow.grad is None
    torch.testing.assert_close(slow, before + 0.25)


def test_exploration_falls_from_all_moves_to_one_in_twenty(monkeypatch):
    found = agent(steps=100, exploring=0.5)
    monkeypatch.setattr(dqn, "greedy", lambda values: torch.full((len(values), 2000), -1))
    monkeypatch.setattr(type(found.world), "inputs", torch.zeros(len(TASKS), 1, INPUTS))
    monkeypatch.setattr(found, "_config", replace(found._config, copies=2000))
    for step, share in ((0, 1.0), (25, 0.525), (50, 0.05), (99, 0.05)):
        tried = found._explore(step, torch.Generator().manual_seed(0)) >= 0
        assert abs(tried.double().mean().item() - share) < 0.03
