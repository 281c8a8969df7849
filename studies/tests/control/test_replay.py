"""The replay buffer holds the last transitions, and resumes with them."""

import io

import torch

from gradnorm_studies.control.environments import GAMES, TrainingEnvironments, random_actions
from gradnorm_studies.control.replay import ReplayBuffer


def filled(size, steps):
    """A buffer after some steps of two copies, and the inputs of each step."""
    envs, buffer, seen = TrainingEnvironments(2, first_seed=0), ReplayBuffer(size), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        seen.append(envs.inputs)
        buffer.add(envs.step(random_actions(2, generator)))
    return buffer, seen


def inputs_in(buffer, game):
    drawn = buffer.sample(200, torch.Generator().manual_seed(0)).inputs
    return {tuple(row) for row in drawn[game].tolist()}


def test_the_oldest_transitions_are_overwritten():
    buffer, seen = filled(6, steps=8)
    for game in range(len(GAMES)):
        assert inputs_in(buffer, game) == {tuple(row) for each in seen[-3:] for row in each[game].tolist()}


def test_only_what_was_added_is_drawn():
    buffer, seen = filled(64, steps=2)
    for game in range(len(GAMES)):
        assert inputs_in(buffer, game) == {tuple(row) for each in seen for row in each[game].tolist()}


def test_a_transition_stays_in_one_piece():
    buffer, _ = filled(64, steps=20)
    drawn = buffer.sample(100, torch.Generator().manual_seed(0))
    pendulum = drawn.inputs[-1], drawn.next_inputs[-1]
    speeds = [8 * inputs[:, 2] for inputs in pendulum]
    angles = [torch.atan2(inputs[:, 1], inputs[:, 0]) for inputs in pendulum]
    turned = (angles[1] - angles[0] + torch.pi) % (2 * torch.pi) - torch.pi
    torch.testing.assert_close(turned, 0.05 * speeds[1], rtol=1e-4, atol=1e-4)  # gymnasium's time step


def test_it_resumes_from_its_state_bitwise():
    buffer, _ = filled(6, steps=5)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    other = ReplayBuffer(6)
    other.load_state_dict(torch.load(file, weights_only=True))
    new = TrainingEnvironments(2, first_seed=9).step(random_actions(2, torch.Generator().manual_seed(3)))
    for each in (buffer, other):
        each.add(new)
    drawn = [each.sample(64, torch.Generator().manual_seed(1)) for each in (buffer, other)]
    assert all(map(torch.equal, *drawn))
