"""Environments are gymnasium's, and resume where they were."""

import io
import math
from itertools import pairwise

import gymnasium
import pytest
import torch

from gradnorm_studies.control.environments import (
    ENVIRONMENTS,
    GAMES,
    OBSERVED,
    Environment,
    TrainingEnvironments,
    VectorEnvironments,
    mean_returns,
    random_actions,
)


def actions(n, seed=0):
    return random_actions(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("place", range(len(GAMES)), ids=GAMES)
def test_environments_are_gymnasiums(place):
    spec = ENVIRONMENTS[place]
    envs, theirs = VectorEnvironments(1), gymnasium.make(spec.id)
    seen, _ = theirs.reset(seed=5)
    envs.reset(place, 0, seed=5)
    done, step = False, 0
    while not done:
        torch.testing.assert_close(envs.inputs[place, 0, : len(seen)] * torch.tensor(spec.limits), torch.tensor(seen))
        chosen = actions(1, step)
        transitions = envs.step(chosen, [(place, 0)])
        seen, reward, terminated, truncated, _ = theirs.step(spec.actions[chosen[place, 0]])
        assert math.isclose(transitions.rewards[place, 0].item(), reward, rel_tol=1e-6)
        assert transitions.terminated[place, 0].item() == terminated
        done, step = terminated or truncated, step + 1
        assert transitions.done[place, 0].item() == done


def test_inputs_are_padded_and_marked_with_the_game():
    envs = VectorEnvironments(2)
    for game in range(len(GAMES)):
        for copy in range(2):
            envs.reset(game, copy, seed=1)
    for place, spec in enumerate(ENVIRONMENTS):
        assert (envs.inputs[place, :, len(spec.limits) : OBSERVED] == 0).all()
        assert torch.equal(envs.inputs[place, :, OBSERVED:], torch.eye(len(GAMES))[place].expand(2, -1))


def test_the_time_limit_resumes_too():
    env, other = Environment(ENVIRONMENTS[-1]), Environment(ENVIRONMENTS[-1])
    for each in (env, other):
        each.reset(0)
    for _ in range(150):
        env.step(0)
    other.load_state_dict(env.state_dict())
    assert [other.step(0)[3] for _ in range(50)] == [False] * 49 + [True]


def test_random_play_earns_what_the_report_says():
    envs = TrainingEnvironments(2, first_seed=0)
    earned = torch.stack([envs.step(actions(2, step)).rewards for step in range(300)])
    said = torch.tensor([spec.reward for spec in ENVIRONMENTS], dtype=torch.float32)
    torch.testing.assert_close(earned.mean((0, 2)), said, rtol=0.15, atol=0)


def test_training_environments_resume_from_their_state_bitwise():
    envs, other = TrainingEnvironments(2, first_seed=7), TrainingEnvironments(2, first_seed=7)
    for step in range(40):
        envs.step(actions(2, step))
    file = io.BytesIO()
    torch.save(envs.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(40, 80):
        both = [each.step(actions(2, step)) for each in (envs, other)]
        assert all(map(torch.equal, *both))
        assert torch.equal(envs.inputs, other.inputs)


def test_an_episode_that_is_done_is_followed_by_another_one():
    envs = TrainingEnvironments(1, first_seed=0)
    fallen = [envs.step(torch.zeros(len(GAMES), 1, dtype=torch.long)) for _ in range(40)]
    ends = [step for step, played in enumerate(fallen) if played.terminated[0, 0]]
    assert len(ends) >= 3  # pushed to one side alone, the pole falls within a dozen steps
    for end, following in pairwise(fallen):
        assert torch.equal(end.next_inputs[0], following.inputs[0]) == (not end.done[0, 0])
    starts = [following.inputs[0] for end, following in pairwise(fallen) if end.done[0, 0]]
    assert not torch.equal(starts[0], starts[1])


def test_episodes_of_evaluation_depend_on_their_seeds_alone():
    def play(first_seed):
        return mean_returns(lambda inputs: torch.zeros(inputs.shape[:2], dtype=torch.long), 2, first_seed)

    assert play(5) == play(5)
    assert play(5)[-1] != play(900)[-1]  # the pendulum's; the other two games' returns are whole numbers
