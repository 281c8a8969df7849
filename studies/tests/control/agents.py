"""Small agents for tests."""

from dataclasses import replace

import torch

from gradnorm_studies.control.settings import RlConfig
from gradnorm_studies.control.study import Rl
from gradnorm_studies.engine.experiment import Job

CONFIG = RlConfig(
    seeds=1,
    steps=60,
    record_every=30,
    num_envs=2,
    batch=8,
    buffer_size=64,
    learning_starts=8,
    rollout_envs=2,
    rollout_steps=16,
    updates=8,
    minibatch=8,
    eval_episodes=1,
)


def agent(problem, method="equal", seed=0, **changes):
    """An agent, as the engine builds it."""
    torch.manual_seed(seed)
    return Rl(replace(CONFIG, **changes)).experiment(Job(problem, method, seed, 1e-3))
