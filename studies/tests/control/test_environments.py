"""Environments are gymnasium's, and resume where they were."""

import math

import gymnasium
import pytest
import torch

from gradnorm_studies.control.dqn import random_actions
from gradnorm_studies.control.environments import ENVIRONMENTS, OBSERVED, TASKS, Environment, VectorEnvironments


def actions(n, seed=0):
    return random_actions(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("place", range(len(TASKS)), ids=TASKS)
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


def test_inputs_are_padded_and_marked_with_the_task():
    envs = VectorEnvironments(2)
    for task in range(len(TASKS)):
        for copy in range(2):
            envs.reset(task, copy, seed=1)
    for place, spec in enumerate(ENVIRONMENTS):
        assert (envs.inputs[place, :, len(spec.limits) : OBSERVED] == 0).all()
        assert torch.equal(envs.inputs[place, :, OBSERVED:], torch.eye(len(TASKS))[place].expand(2, -1))


def test_the_time_limit_resumes_too():
    env, other = Environment(ENVIRONMENTS[-1]), Environment(ENVIRONMENTS[-1])
    for each in (env, other):
        each.reset(0)
    for _ in range(150):
        env.step(0)
    other.load_state_dict(env.state_dict())
    assert [other.step(0)[3] for _ in range(50)] == [False] * 49 + [True]
