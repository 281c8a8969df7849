"""The settings of both agents."""

from __future__ import annotations

from dataclasses import dataclass

from gradnorm_studies.engine.settings import ALPHA, RECORD_EVERY, STEPS, TrainingConfig, setting


@dataclass(frozen=True)
class RlConfig(TrainingConfig):
    """Chosen by agents that share nothing; PPO's tasks, by runs on a seed that is never reported (`ppo.py`)."""

    seeds: int = setting(
        5,
        "Number of seeds; each sets the network, the episodes and all randomness.",
        "Runs of one method differ up to fourfold, and take a minute.",
        least=1,
    )
    steps: int = setting(12_000, STEPS, "An agent per game learns all three; a run takes about a minute.", least=1)
    num_envs: int = setting(4, "DQN: copies of each environment.", "48,000 transitions per game over a run.", least=1)
    discount: float = setting(
        0.98,
        "Discount of later rewards, γ.",
        "A horizon of 50 steps: Acrobot needs about 80, CartPole falls within 10.",
        above=0,
        most=1,
    )
    batch: int = setting(128, "DQN: batch size, from each game's own replay buffer.", "A common size.", least=1)
    buffer_size: int = setting(
        50_000, "DQN: transitions in the replay buffer per game.", "More than a run has.", least=1
    )
    learning_starts: int = setting(
        250, "DQN: random steps of every copy before training.", "So that no batch is from one episode.", least=1
    )
    exploration_fraction: float = setting(
        0.3,
        "DQN: share of the run over which epsilon falls from 1 to 0.05.",
        "Common shares are 0.1 to 0.5.",
        above=0,
        most=1,
    )
    tau: float = setting(0.005, "DQN: rate of the target network's soft update.", "A common rate.", above=0, most=1)
    rollout_envs: int = setting(32, "PPO: copies of each environment.", "2,048 transitions per rollout.", least=1)
    rollout_steps: int = setting(64, "PPO: steps of every copy per rollout.", "385,024 per game over a run.", least=1)
    updates: int = setting(
        64, "PPO: updates per rollout, each on a minibatch.", "Eight times over the rollout.", least=1
    )
    minibatch: int = setting(256, "PPO: transitions per minibatch.", "An eighth of a rollout.", least=1)
    clip: float = setting(0.2, "PPO: clipping range of the probability ratio.", "The PPO paper's.", above=0)
    gae_lambda: float = setting(
        0.9, "PPO: λ of generalized advantage estimation.", "Within the usual 0.8 to 0.95.", least=0, most=1
    )
    value_coefficient: float = setting(
        0.5, "PPO: factor of the value losses.", "As in common implementations.", above=0
    )
    entropy_coefficient: float = setting(
        0.01, "PPO: factor of the entropies.", "As in common implementations.", least=0
    )
    eval_episodes: int = setting(
        10,
        "Episodes per game and evaluation, from the same starts for all methods with a seed.",
        "A result is the mean over five evaluations of the same ten starts.",
        least=1,
    )
    alpha: float = setting(
        0.0,
        ALPHA,
        "Equal gradient norms: temporal differences rise as an agent finds larger returns, and policy losses are of "
        "either sign around zero, so that no loss over its first value is a rate of progress.",
        least=0,
    )
    record_every: int = setting(600, RECORD_EVERY, "20 points per curve.", least=1)
