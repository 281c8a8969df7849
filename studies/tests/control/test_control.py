"""Rewards are scaled as said, games go on where they were, and the report says what was measured."""

import io
import math
from dataclasses import replace

import gymnasium
import pytest
import torch

from gradnorm_studies.analysis.metrics import Metrics
from gradnorm_studies.control import study as rl
from gradnorm_studies.control.dqn import SCORE, Agent, RlConfig, World, random_actions
from gradnorm_studies.control.environments import GAMES, INPUTS, OBSERVED, TASKS, Game, Games, Moves
from gradnorm_studies.control.study import Rl
from gradnorm_studies.engine.study import Job
from gradnorm_studies.engine.training import train
from gradnorm_studies.sweeps.learning_rate import Search

CONFIG = RlConfig(seeds=1, steps=60, record_every=30, copies=2, batch=8, memory=64, warm_up=8, test_games=1)


def agent(method="equal", seed=0, **changes):
    torch.manual_seed(seed)
    return Agent(replace(CONFIG, **changes), Job(rl.PROBLEM, method, seed, 1e-3))


def actions(copies, seed=0):
    return random_actions(copies, torch.Generator().manual_seed(seed))


def everyone(copies):
    return [(task, copy) for task in range(len(TASKS)) for copy in range(copies)]


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


@pytest.mark.parametrize("place", range(len(TASKS)), ids=TASKS)
def test_games_are_gymnasiums(place):
    task = GAMES[place]
    games, theirs = Games(1), gymnasium.make(task.id)
    seen, _ = theirs.reset(seed=5)
    games.start(place, 0, seed=5)
    over, step = False, 0
    while not over:
        torch.testing.assert_close(games.inputs[place, 0, : len(seen)] * torch.tensor(task.limits), torch.tensor(seen))
        chosen = actions(1, step)
        moves = games.move(chosen, [(place, 0)])
        seen, reward, terminated, truncated, _ = theirs.step(task.actions[chosen[place, 0]])
        assert math.isclose(moves.rewards[place, 0].item(), reward, rel_tol=1e-6)
        assert moves.ended[place, 0].item() == terminated
        over, step = terminated or truncated, step + 1
        assert moves.over[place, 0].item() == over


def test_inputs_are_padded_and_marked_with_the_task():
    games = Games(2)
    for at in everyone(2):
        games.start(*at, seed=1)
    for place, task in enumerate(GAMES):
        assert (games.inputs[place, :, len(task.limits) : OBSERVED] == 0).all()
        assert torch.equal(games.inputs[place, :, OBSERVED:], torch.eye(len(TASKS))[place].expand(2, -1))


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


def test_a_games_clock_goes_on_too():
    game, other = Game(GAMES[-1]), Game(GAMES[-1])
    for each in (game, other):
        each.start(0)
    for _ in range(150):
        game.move(0)
    other.load_state_dict(game.state_dict())
    assert [other.move(0)[3] for _ in range(50)] == [False] * 49 + [True]


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
    job = Job(rl.PROBLEM, "gradnorm", 0, 1e-3)
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
    monkeypatch.setattr(rl, "greedy", lambda values: torch.full((len(values), 2000), -1))
    monkeypatch.setattr(type(found.world), "inputs", torch.zeros(len(TASKS), 1, INPUTS))
    monkeypatch.setattr(found, "_config", replace(found._config, copies=2000))
    for step, share in ((0, 1.0), (25, 0.525), (50, 0.05), (99, 0.05)):
        tried = found._explore(step, torch.Generator().manual_seed(0)) >= 0
        assert abs(tried.double().mean().item() - share) < 0.03


def test_normalised_is_the_share_of_the_way_from_random_play_to_an_agent_alone_on_average_over_seeds():
    def rows(chance, *returns):
        return [(0, f"return/{task}", r) for task, r in zip(TASKS, returns, strict=True)] + [
            (0, f"random/{task}", chance) for task in TASKS
        ]

    runs = {
        (rl.PROBLEM, "single", 0): rows(-150.0, 200.0, 0.0, -75.0),
        (rl.PROBLEM, "single", 1): rows(-50.0, 0.0, 0.0, -25.0),
        (rl.PROBLEM, "equal", 0): rows(-150.0, 0.0, -50.0, -25.0),
    }
    metrics = Metrics(runs)
    found = rl.normalised(metrics, metrics)
    shares = [found.final(rl.PROBLEM, "single", f"normalised/{task}").tolist() for task in TASKS]
    assert shares == [[150, 50], [100, 100], [50, 150]]
    assert [found.final(rl.PROBLEM, "equal", f"normalised/{task}").item() for task in TASKS] == [50, 50, 150]
    assert found.final(rl.PROBLEM, "equal", rl.WORST).item() == 50
    assert math.isclose(found.final(rl.PROBLEM, "equal", rl.MEAN).item(), 250 / 3)


def test_late_is_the_mean_over_the_last_share():
    runs = {("p", "m", 0): [(step, "x", float(step)) for step in range(8)] + [(7, "once", 5.0)]}
    late = Metrics(runs).late(0.25)
    assert late.series("p", "m", "x").tolist() == [[6.5]]
    assert late.steps("p", "m", "x").tolist() == [7]
    assert late.final("p", "m", "once").tolist() == [5.0]
    assert Metrics(runs).late(0).final("p", "m", "x").tolist() == [7.0]


def test_the_search_looks_at_the_same_share_as_the_study(tmp_path):
    search = Search(Rl(CONFIG))

    lucky = {1e-2: [0, 0, 0, 0, 0, 0, 0, 15], 3e-3: [0, 0, 0, 0, 0, 0, 10, 10]}
    runs = {job.key: [(i, SCORE, x) for i, x in enumerate(lucky.get(job.lr, [0.0] * 8))] for job in search.jobs()}
    assert {row[-1] for row in search.report(Metrics(runs), tmp_path).tables[0].rows} == {"0.003"}


def test_the_report_has_every_table_and_figure(tmp_path):
    study = Rl(replace(CONFIG, seeds=2))

    def rows(offset):
        values = {SCORE: 50.0 + offset}
        for task in TASKS:
            values |= {f"return/{task}": 10.0 + offset, f"random/{task}": 0.0, f"weight/{task}": 1.0 + offset}
        return [(step, name, value) for step in range(0, 61, 30) for name, value in values.items()]

    report = study.report(Metrics({job.key: rows(i) for i, job in enumerate(study.jobs())}), tmp_path)
    shares, returns, weights, asked = report.tables
    methods = ["gradnorm", "single", "equal", "uncertainty", "static"]
    assert [row[0] for row in shares.rows] == [row[0] for row in weights.rows] == methods
    assert [row[0] for row in returns.rows] == ["random play", *methods]
    assert shares.header == ("method", "mean over tasks %", "worst task %", *(f"{task} %" for task in TASKS))
    assert len(asked.rows) == len(rl.CLAIMS)
    assert all(figure.path.stat().st_size > 1000 for figure in report.figures)
