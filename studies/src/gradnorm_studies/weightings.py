"""The weightings that studies compare, behind one protocol: values in, scalar out, something after the step.

What others have written well comes from TorchJD; what is here only gives it the protocol, so that a study's loop does
not know which method it trains with. A new method is one class and one line of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gradnorm import Descent, GradNorm


@dataclass(frozen=True)
class Setting:
    """What a weighting may need to know of the network it balances."""

    tasks: tuple[str, ...]
    shared: nn.Module
    """The last shared layer, the paper's `W`."""
    alpha: float
    weight_lr: float
    """The learning rate of GradNorm's weights."""
    fixed: tuple[float, ...] | None = None
    """The weights of a static run, one a task."""
    epoch: int = 100
    """Steps over which DWA averages a loss."""


class Weighting(nn.Module):
    """Turns the losses of all tasks, [T], into the scalar that trains the network."""

    weights: Tensor
    """What multiplies each loss now, [T]."""

    def step(self) -> None:
        """Called after the optimizer's step."""

    def averaged_weights(self) -> Tensor:
        """The weights for a static run after this one, [T]."""
        return self.weights


class Fixed(Weighting):
    """`Σ w_i L_i` with weights that never change."""

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
        """The effective `w_i = ½ exp(−s_i)`, [T]."""
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


class GradientNormalization(Weighting):
    """GradNorm, as any user would call it."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.balancer = GradNorm(
            list(setting.tasks), shared=setting.shared, alpha=setting.alpha, update=Descent(setting.weight_lr)
        )

    @property
    def weights(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The balancer's weights, [T]."""
        return cast(Tensor, self.balancer.weights)

    def forward(self, values: Tensor) -> Tensor:
        """[T] → []."""
        return self.balancer(values)

    def step(self) -> None:
        """Algorithm 1's update of `w`."""
        self.balancer.step()

    def averaged_weights(self) -> Tensor:
        """The average over the run, [T] (§5.2)."""
        return self.balancer.time_averaged_weights()


def _equal(setting: Setting) -> Weighting:
    return Fixed(torch.ones(len(setting.tasks)))


def _static(setting: Setting) -> Weighting:
    if setting.fixed is None:
        raise ValueError("The method 'static' needs weights and found none: give Setting(fixed=(…)), one a task.")
    return Fixed(torch.tensor(setting.fixed))


METHODS: dict[str, Callable[[Setting], Weighting]] = {
    # Without shared parameters and with an optimizer that works parameter by parameter, the plain sum of the losses
    # trains T networks as if each were alone.
    "single": _equal,
    "equal": _equal,
    "static": _static,
    "uncertainty": lambda setting: Uncertainty(len(setting.tasks)),
    "dwa": lambda setting: DynamicAverage(len(setting.tasks), setting.epoch),
    "gradnorm": GradientNormalization,
}


def weighting(method: str, setting: Setting) -> Weighting:
    """The weighting called `method`, for the network that `setting` describes.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> equal = weighting("equal", Setting(("a", "b"), layer, alpha=1.5, weight_lr=0.025))
        >>> equal(torch.tensor([1.0, 2.0]))
        tensor(3.)
    """
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}: choose one of {', '.join(METHODS)}.")
    return METHODS[method](setting)
