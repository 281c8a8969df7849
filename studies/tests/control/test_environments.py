"""Games are gymnasium's, and go on where they were."""

import math

import gymnasium
import pytest
import torch

from gradnorm_studies.control.dqn import random_actions
from gradnorm_studies.control.environments import GAMES, OBSERVED, TASKS, Game, Games


def actions(copies, seed=0):
    return random_actions(copies, torch.Generator().manual_seed(seed))


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
    for task in range(len(TASKS)):
        for copy in range(2):
            games.start(task, copy, seed=1)
    for place, task in enumerate(GAMES):
        assert (games.inputs[place, :, len(task.limits) : OBSERVED] == 0).all()
        assert torch.equal(games.inputs[place, :, OBSERVED:], torch.eye(len(TASKS))[place].expand(2, -1))


def test_a_games_clock_goes_on_too():
    game, other = Game(GAMES[-1]), Game(GAMES[-1])
    for each in (game, other):
        each.start(0)
    for _ in range(150):
        game.move(0)
    other.load_state_dict(game.state_dict())
    assert [other.move(0)[3] for _ in range(50)] == [False] * 49 + [True]
