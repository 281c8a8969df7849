"""What holds for both agents: what is shared, resuming, evaluation on episodes apart."""

import pytest
import torch

from gradnorm_studies.control.agent import EVALUATION_SEEDS, SOLVED, TRAINING_SEED
from gradnorm_studies.control.environments import ENVIRONMENTS, GAMES
from gradnorm_studies.control.study import AGENTS, Rl
from gradnorm_studies.engine.experiment import Job
from gradnorm_studies.sweeps.learning_rate import FIRST_SEED

from .agents import CONFIG, agent


@pytest.fixture(params=AGENTS)
def problem(request):
    return request.param


def trunks(found):
    return (found.model.online if hasattr(found.model, "online") else found.model).trunks.layers


@pytest.mark.parametrize("method", ["gradnorm", "closed-form"])
def test_a_resumed_run_is_the_same_though_its_episodes_began_before(problem, method, tmp_path):
    job, study = Job(problem, method, 0, 1e-3), Rl(CONFIG)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert study.train(job, whole, lambda step: False)
    assert not study.train(job, parts, lambda step: step == 20)
    assert study.train(job, parts, lambda step: False)
    name = f"{job.file_name}.json"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_single_shares_nothing_and_the_others_a_trunk(problem):
    for method, shared in (("single", False), ("equal", True)):
        found = agent(problem, method)
        losses = found.losses(0)
        for loss, task in zip(losses, found.tasks, strict=True):
            gradients = torch.autograd.grad(
                loss, list(trunks(found).parameters()), retain_graph=True, allow_unused=True
            )
            reached = [g is not None and bool(g.any()) for g in gradients]
            own = [shared or task.endswith(GAMES[i // 4]) for i in range(len(reached))]
            assert reached == own, task


def test_methods_start_alike_and_seeds_apart(problem):
    first = agent(problem, "equal").losses(0)
    assert torch.equal(first, agent(problem, "gradnorm").losses(0))
    assert not torch.equal(first, agent(problem, "equal", seed=1).losses(0))


def test_the_share_of_solved_is_0_for_random_play_and_100_where_all_is_solved(problem, monkeypatch):
    found = agent(problem)
    for returns, share in ((list(found._random["test"]), 0), ([spec.solved for spec in ENVIRONMENTS], 100)):
        monkeypatch.setattr(found, "_returns", lambda split, returns=returns: returns)
        assert found.evaluate("test")[SOLVED] == pytest.approx(share)


def test_no_two_seeds_splits_or_searches_play_the_same_episodes():
    """A run has at most 60,000 short episodes of a game, and seeds count to the search's hundred and more."""
    assert len(set(EVALUATION_SEEDS.values())) == 2
    validation, test = EVALUATION_SEEDS["validation"], EVALUATION_SEEDS["test"]
    most = 2 * FIRST_SEED
    assert (most + 1) * TRAINING_SEED < validation
    assert validation + 1000 * most < test


def test_validation_is_on_other_episodes_than_the_test(problem):
    found = agent(problem)
    validation, test = found.evaluate("validation"), found.evaluate("test")
    assert validation["random/Pendulum"] != test["random/Pendulum"]
    assert validation["return/Pendulum"] != test["return/Pendulum"]
    assert found.evaluate("test") == test
