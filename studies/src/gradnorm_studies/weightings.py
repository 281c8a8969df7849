"""The weightings that studies compare, behind one interface: losses in, scalar out, `step()` after the optimizer's.

Existing methods come from TorchJD, wrapped here, so that a study's loop does not depend on the method. A new method is
one class and one line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gradnorm import ClosedForm, Descent, GradNorm


@dataclass(frozen=True)
class WeightingConfig:
    """The facts about the network and the settings that a weighting may need."""

    tasks: tuple[str, ...]
    shared: nn.Module
    """The last shared layer, the paper's `W`."""
    alpha: float
    weight_lr: float
    """The learning rate of GradNorm's weights."""
    fixed: tuple[float, ...] | None = None
    """The weights of a static run, one per task."""
    epoch: int = 100
    """Steps over which DWA averages a loss."""
    seed: int = 0
    """Seed of random weights."""


class Weighting(nn.Module):
    """Reduces the losses of all tasks, [T], to the scalar that trains the network."""

    weights: Tensor
    """[T], the current factors of the losses."""

    def step(self) -> None:
        """Called after the optimizer's step."""

    def averaged_weights(self) -> Tensor:
        """[T], the weights for a static run after this one."""
        return self.weights


class Fixed(Weighting):
    """`Σ w_i L_i` with constant weights."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, values: Tensor) -> Tensor:
        """[T] → []."""
        return (self.weights * values).sum()


class Uncertainty(Weighting):
    """Kendall et al. (2018), by TorchJD; its log-variances are parameters for the model's own optimizer."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        from torchjd.scalarization import UW

        self.scalarizer = UW(n_tasks)

    @property
    def weights(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[T], the effective `w_i = ½ exp(−s_i)`."""
        return 0.5 * torch.exp(-self.scalarizer.log_var.detach())

    def forward(self, values: Tensor) -> Tensor:
        """[T] → []."""
        return self.scalarizer(values)


class DynamicAverage(Weighting):
    """DWA (Liu et al., 2019, eq. 7): `w_i = T softmax(L_i(t−1) / L_i(t−2) / 2)`, where t counts epochs.

    Not TorchJD's, which does not save its averages: a run that is resumed would differ.
    """

    means: Tensor
    """[2, T], of the last two epochs."""
    sums: Tensor
    steps: Tensor

    def __init__(self, n_tasks: int, epoch: int, temperature: float = 2.0) -> None:
        super().__init__()
        self.epoch = epoch
        self.temperature = temperature
        self.register_buffer("weights", torch.ones(n_tasks))
        self.register_buffer("means", torch.zeros(2, n_tasks))
        self.register_buffer("sums", torch.zeros(n_tasks))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, values: Tensor) -> Tensor:
        """[T] → []."""
        self.sums += values.detach()
        # A copy: step() changes the weights in place, and backward may still need these.
        return (self.weights.clone() * values).sum()

    def step(self) -> None:
        """At the end of an epoch, its means are known."""
        self.steps += 1
        if self.steps % self.epoch:
            return
        self.means.copy_(torch.stack([self.means[1], self.sums / self.epoch]))
        self.sums.zero_()
        if self.steps >= 2 * self.epoch:
            rates = self.means[1] / self.means[0]
            self.weights.copy_(len(rates) * torch.softmax(rates / self.temperature, dim=0))


class Divided(Weighting):
    """`Σ L_i / L_i(0)`: each loss divided by its first value."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(n_tasks))

    def forward(self, values: Tensor) -> Tensor:
        """[T] → []."""
        if not self.weights.any():
            self.weights.copy_(1 / values.detach())
        return (self.weights * values).sum()


class Geometric(Weighting):
    """The geometric mean of the losses, by TorchJD; its effective weights are those of its gradient."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        from torchjd.scalarization import GeometricMean

        self.scalarizer = GeometricMean()
        self.register_buffer("weights", torch.ones(n_tasks))

    def forward(self, values: Tensor) -> Tensor:
        """[T] → []."""
        mean = self.scalarizer(values)
        self.weights.copy_(mean.detach() / (len(values) * values.detach()))
        return mean


class Random(Weighting):
    """Random weights in each step (Lin et al., 2022), by TorchJD, drawn by step number so that a run can be resumed."""

    steps: Tensor

    def __init__(self, n_tasks: int, seed: int) -> None:
        super().__init__()
        from torchjd.scalarization import Random as RandomScalarizer

        self.scalarizer, self.seed = RandomScalarizer(), seed
        self.register_buffer("weights", torch.full((n_tasks,), 1 / n_tasks))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, values: Tensor) -> Tensor:
        """[T] → []."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed + 1) * 1_000_003 + int(self.steps))
            return self.scalarizer(values)

    def step(self) -> None:
        """The next step draws other weights."""
        self.steps += 1


class GradientNormalization(Weighting):
    """`gradnorm.GradNorm`, through its public interface."""

    def __init__(self, config: WeightingConfig, update: Descent | ClosedForm) -> None:
        super().__init__()
        self.balancer = GradNorm(list(config.tasks), shared=config.shared, alpha=config.alpha, update=update)

    @property
    def weights(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[T], the balancer's weights."""
        return cast(Tensor, self.balancer.weights)

    def forward(self, values: Tensor) -> Tensor:
        """[T] → []."""
        return self.balancer(values)

    def step(self) -> None:
        """Algorithm 1's update of `w`."""
        self.balancer.step()

    def averaged_weights(self) -> Tensor:
        """[T], the average over the run (§5.2)."""
        return self.balancer.time_averaged_weights()


def _equal(config: WeightingConfig) -> Weighting:
    return Fixed(torch.ones(len(config.tasks)))


def _static(config: WeightingConfig) -> Weighting:
    if config.fixed is None:
        raise ValueError(
            "The method 'static' needs weights and found none: give WeightingConfig(fixed=(…)), one per task."
        )
    return Fixed(torch.tensor(config.fixed))


METHODS: dict[str, Callable[[WeightingConfig], Weighting]] = {
    # Algorithm 1, and its fixed point.
    "gradnorm": lambda config: GradientNormalization(config, Descent(config.weight_lr)),
    "closed-form": lambda config: GradientNormalization(config, ClosedForm()),
    # Without shared parameters and with an optimizer that works parameter by parameter, the plain sum of the losses
    # trains T networks as if each were alone.
    "single": _equal,
    "equal": _equal,
    "divided": lambda config: Divided(len(config.tasks)),
    "uncertainty": lambda config: Uncertainty(len(config.tasks)),
    "geometric": lambda config: Geometric(len(config.tasks)),
    "dwa": lambda config: DynamicAverage(len(config.tasks), config.epoch),
    "random": lambda config: Random(len(config.tasks), config.seed),
    "static": _static,
    "static-closed-form": _static,
}
"""By name, in the order of tables."""

STATIC = {"static": "gradnorm", "static-closed-form": "closed-form"}
"""Methods with fixed weights: the averages of another method's run."""

AVERAGED = {source: method for method, source in STATIC.items()}
"""By update, the method with its averages."""

MOVING = ("gradnorm", "closed-form", "uncertainty", "geometric", "dwa")
"""Methods whose weights are worth a figure."""


def weighting(method: str, config: WeightingConfig) -> Weighting:
    """The weighting called `method`, for the network that `config` describes.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> equal = weighting("equal", WeightingConfig(("a", "b"), layer, alpha=1.5, weight_lr=0.025))
        >>> equal(torch.tensor([1.0, 2.0]))
        tensor(3.)
    """
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}: choose one of {', '.join(METHODS)}.")
    return METHODS[method](config)
