"""An actor-critic agent (PPO) with one trunk for all games, and a policy and a value head per game.

Two losses per game are balanced: that of the policy, its negative entropy included, of either sign; and the squared
error of the values, which grows with the square of the returns. The entropy is not a task of its own: its coefficient
is how much exploration is wanted and no matter of scale, and its gradient vanishes where a policy is certain, so that
equal gradient norms would give such an entropy nearly all weight. So it was in a run with nine losses, on a seed that
no study reports; with three, summed over games, Pendulum was learned worse than with equal weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradnorm_studies.control.agent import WIDTH, Agent, Trunks, trunks_of
from gradnorm_studies.control.environments import ENVIRONMENTS, GAMES, INPUTS, Transitions
from gradnorm_studies.control.settings import RlConfig
from gradnorm_studies.engine.experiment import Job, step_generator

KINDS = ("policy", "value")
TASKS = tuple(f"{kind} {game}" for kind in KINDS for game in GAMES)


class ActorCritic(nn.Module):
    """One trunk for all games, or one per game, and an affine policy head and value head per game."""

    def __init__(self, trunks: int) -> None:
        super().__init__()
        self.policies = nn.ModuleList(nn.Linear(WIDTH, len(spec.actions)) for spec in ENVIRONMENTS)
        self.values = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in ENVIRONMENTS)
        self.trunks = Trunks(trunks)

    def forward(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """[G, n, INPUTS] → log-probabilities of the actions, G times [n, A], and values, [G, n]."""
        features = self.trunks(inputs).unbind()
        policies = [head(x).log_softmax(1) for head, x in zip(self.policies, features, strict=True)]
        values = [head(x).squeeze(1) for head, x in zip(self.values, features, strict=True)]
        return policies, torch.stack(values)


class Rollout(NamedTuple):
    """What the agent has just played, each field [G, n] or [G, n, …]."""

    inputs: Tensor
    actions: Tensor
    log_probs: Tensor
    """Of the actions, by the policy that took them."""
    advantages: Tensor
    """Mean 0 and variance 1 per game."""
    returns: Tensor
    """Targets of the values."""

    @classmethod
    def zeros(cls, n: int) -> Rollout:
        """Room for `n` steps per game."""
        actions = torch.zeros(len(GAMES), n, dtype=torch.long)
        return cls(torch.zeros(len(GAMES), n, INPUTS), actions, *(torch.zeros(len(GAMES), n) for _ in range(3)))


class RolloutBuffer:
    """The last rollout."""

    def __init__(self, n: int) -> None:
        self.rollout = Rollout.zeros(n)

    def sample(self, n: int, generator: torch.Generator) -> Rollout:
        """A minibatch: the same `n` places of all games."""
        places = torch.randperm(self.rollout.actions.shape[1], generator=generator)[:n]
        return Rollout(*(field[:, places] for field in self.rollout))

    def state_dict(self) -> dict[str, Any]:
        return {"rollout": list(self.rollout)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rollout = Rollout(*state["rollout"])


class Ppo(Agent):
    """Balances the policy and value losses of the games."""

    tasks = TASKS

    def __init__(self, config: RlConfig, job: Job) -> None:
        super().__init__(config, job, config.rollout_envs)
        self.model = self.network = ActorCritic(trunks_of(job))
        self.equip(job, config, self.network.trunks.last_shared)
        self.buffer = RolloutBuffer(config.rollout_envs * config.rollout_steps)

    def decay(self, step: int) -> float:
        """Linear to 0, as in common implementations: at a constant rate agents lose games that they had learned."""
        return 1 - step / self.config.steps

    def losses(self, step: int) -> Tensor:
        """The losses on a minibatch of the last rollout, [2 G]; every `updates` steps there is a new rollout."""
        generator = step_generator(self.seed, step)
        if step % self.config.updates == 0:
            self.buffer.rollout = self._play(generator)
        batch = self.buffer.sample(self.config.minibatch, generator)
        policies, values = self.network(batch.inputs)
        errors = (values - batch.returns).square().mean(1)
        return torch.cat([self._policy_losses(policies, batch), self.config.value_coefficient * errors])

    def _policy_losses(self, policies: list[Tensor], batch: Rollout) -> Tensor:
        """The clipped losses less the entropies, [G]."""
        ratio = (_of(policies, batch.actions) - batch.log_probs).exp()
        clipped = ratio.clamp(1 - self.config.clip, 1 + self.config.clip)
        gain = torch.minimum(ratio * batch.advantages, clipped * batch.advantages).mean(1)
        entropy = torch.stack([-(p.exp() * p).sum(1).mean() for p in policies])
        return -gain - self.config.entropy_coefficient * entropy

    def best_actions(self, inputs: Tensor) -> Tensor:
        """The most probable ones, [G, n]."""
        return torch.stack([policy.argmax(1) for policy in self.network(inputs)[0]])

    def stateful(self) -> dict[str, Any]:
        """The last rollout, too."""
        return {**super().stateful(), "rollout": self.buffer}

    @torch.no_grad()
    def _play(self, generator: torch.Generator) -> Rollout:
        """`rollout_steps` steps in every environment."""
        steps = []
        for _ in range(self.config.rollout_steps):
            policies, _ = self.network(self.environments.inputs)
            actions = [torch.multinomial(p.exp(), 1, generator=generator).squeeze(1) for p in policies]
            steps.append(self.environments.step(torch.stack(actions)))
        played = Transitions(*(torch.stack(field, 1) for field in zip(*steps, strict=True)))  # [G, t, num_envs]
        return self._assess(played)

    def _assess(self, played: Transitions) -> Rollout:
        """The transitions [G, t, num_envs] with their advantages and returns, [G, n]."""
        inputs, actions = played.inputs.flatten(1, 2), played.actions.flatten(1, 2)
        policies, values = self.network(inputs)
        _, following = self.network(played.next_inputs.flatten(1, 2))
        shape = played.rewards.shape
        advantages = generalized_advantages(
            played, values.view(shape), following.view(shape), self.config.discount, self.config.gae_lambda
        ).flatten(1, 2)
        normal = (advantages - advantages.mean(1, keepdim=True)) / (advantages.std(1, keepdim=True) + 1e-8)
        return Rollout(inputs, actions, _of(policies, actions), normal, advantages + values)


def generalized_advantages(played: Transitions, values: Tensor, following: Tensor, discount: float, lam: float):
    """Generalized advantage estimates (GAE), [G, t, num_envs].

    Args:
        played: Transitions, in order of time on the second axis.
        values: Of the observations, [G, t, num_envs].
        following: Of the observations that followed; where an episode terminated they count as 0.
        discount: γ.
        lam: λ, how far errors of the values are passed on.
    """
    errors = played.rewards + discount * following.masked_fill(played.terminated, 0) - values
    advantages = torch.zeros_like(errors)
    later = torch.zeros_like(errors[:, 0])
    for t in reversed(range(errors.shape[1])):
        later = errors[:, t] + discount * lam * later.masked_fill(played.done[:, t], 0)
        advantages[:, t] = later
    return advantages


def _of(policies: list[Tensor], actions: Tensor) -> Tensor:
    """The log-probabilities of the actions, [G, n]."""
    return torch.stack([p.gather(1, a.unsqueeze(1)).squeeze(1) for p, a in zip(policies, actions, strict=True)])
