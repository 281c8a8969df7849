"""The problem is the paper's."""

import torch

from gradnorm_studies.toy import SIGMAS, Problem, ToyConfig


def test_targets_scale_with_sigma_and_are_neither_linear_nor_saturated():
    problem = Problem(ToyConfig(), SIGMAS["T=2"], seed=0)
    x, y = problem.held_out["test"]
    assert x.shape == (1000, 250)
    assert y.shape == (2, 1000, 100)
    assert y[0].abs().max() <= 1
    assert 90 < y[1].abs().max() <= 100
    saturated = (y[0].abs() > 0.99).float().mean()
    assert 0 < saturated < 0.05


def test_the_tasks_share_most_of_their_map():
    _, y = Problem(ToyConfig(), SIGMAS["T=2"], seed=0).held_out["test"]
    correlation = torch.corrcoef(y.flatten(1))[0, 1]
    assert 0.8 < correlation < 0.95
