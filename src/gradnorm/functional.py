"""The rule: GradNorm's equations, one pure function each (Chen et al., ICML 2018, §3).

Tensors of shape [T] hold one number per task, NaN for an absent task: means and sums run over the others. Where no task
is absent, `is_complete=True` skips the handling of NaN. Nothing here depends on a graph, a module or a process group;
nothing synchronizes with the device. The symbols, in the paper's order:

| paper                | name                         | meaning                          |
| ---                  | ---                          | ---                              |
| `L_i(t)`, `L_i(0)`   | `losses`, `initial_losses`   | now, and at the start            |
| `w_i`                | `weights`                    | sum T                            |
| `‖∇_W L_i‖₂`         | `raw_norms`                  | of the unweighted losses         |
| `G_i`                | `gradient_norms`             | of the weighted losses           |
| `Ḡ`                  | `mean_gradient_norm`         | their common scale               |
| `L̃_i`               | `loss_ratios`                | small = trained fast             |
| `r_i`                | `inverse_training_rates`     | large = lagging = larger target  |
| `Ḡ r_i^α`            | `target_norms`               | where each `G_i` should be       |
| `L_grad`             | `gradnorm_loss`              | their distance                   |
| `∂L_grad/∂w_i`       | `weight_gradients`           | what the optimizer of `w` sees   |

The closed form, which is ours, adds `closed_form_weights`, the point at which `L_grad` is zero up to a factor common to
all tasks, and a bound on the rates.

Examples:
    The second task lags (its loss has hardly moved), so its weight must rise: its gradient is negative.

    >>> import torch
    >>> weights = torch.ones(2)
    >>> raw_norms = torch.tensor([1.0, 1.0])
    >>> rates = inverse_training_rates(loss_ratios(torch.tensor([0.2, 0.9]), torch.tensor([1.0, 1.0])))
    >>> norms = gradient_norms(weights, raw_norms)
    >>> targets = target_norms(mean_gradient_norm(norms), rates, alpha=1.0)
    >>> weight_gradients(norms, targets, raw_norms)
    tensor([ 1., -1.])
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "bounded_rates",
    "closed_form_weights",
    "gradient_norms",
    "gradnorm_loss",
    "initial_mean",
    "inverse_training_rates",
    "loss_ratios",
    "mean_gradient_norm",
    "renormalize",
    "target_norms",
    "weight_gradients",
]


def gradient_norms(weights: Tensor, raw_norms: Tensor) -> Tensor:
    """`G_i = ‖∇_W w_i L_i‖₂ = w_i ‖∇_W L_i‖₂` for `w_i > 0` (§3.1). [T], [T] → [T].

    Examples:
        >>> gradient_norms(torch.tensor([0.5, 1.5]), torch.tensor([4.0, 2.0]))
        tensor([2., 3.])
    """
    return weights * raw_norms


def mean_gradient_norm(gradient_norms: Tensor, is_complete: bool = False) -> Tensor:
    """`Ḡ = mean_i G_i` (§3.1). [T] → [].

    Examples:
        >>> mean_gradient_norm(torch.tensor([2.0, 4.0, torch.nan]))
        tensor(3.)
    """
    return _mean(gradient_norms, is_complete)


def loss_ratios(losses: Tensor, initial_losses: Tensor) -> Tensor:
    """`L̃_i = L_i(t) / L_i(0)`, an inverse training rate: small where a task trains fast (§3.1). [T], [T] → [T].

    Examples:
        >>> loss_ratios(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]))
        tensor([0.5000, 0.7500])
    """
    return losses / initial_losses


def initial_mean(losses: Tensor, sums: Tensor, counts: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Sums and counts behind `L_i(0)`, the mean of a task's first `steps` usable losses. [T], [T], [T] → [T], [T].

    A loss that is zero, negative or not finite cannot be `L_i(0)` and is skipped. The paper has `steps = 1`.

    Examples:
        >>> initial_mean(torch.tensor([3.0, 0.0]), torch.zeros(2), torch.zeros(2), steps=1)
        (tensor([3., 0.]), tensor([1., 0.]))
    """
    take = (losses > 0) & (losses < torch.inf) & (counts < steps - 0.5)
    return torch.where(take, sums + losses, sums), counts + take.to(counts.dtype)


def inverse_training_rates(loss_ratios: Tensor, is_complete: bool = False) -> Tensor:
    """`r_i = L̃_i / mean_j L̃_j`: above 1 where a task lags behind the others (§3.1). [T] → [T].

    Examples:
        >>> inverse_training_rates(torch.tensor([0.5, 1.5]))
        tensor([0.5000, 1.5000])
    """
    return loss_ratios / _mean(loss_ratios, is_complete)


def target_norms(mean_gradient_norm: Tensor, rates: Tensor, alpha: float, priorities: Tensor | None = None) -> Tensor:
    """`Ḡ r_i^α` (eq. 1), or `p_i Ḡ r_i^α` with priorities, which the paper does not have. [], [T] → [T].

    The exponent is +α: a lagging task gets the larger target.

    Examples:
        >>> target_norms(torch.tensor(2.0), torch.tensor([0.5, 1.5]), alpha=1.0)
        tensor([1., 3.])
    """
    targets = mean_gradient_norm * rates**alpha
    return targets if priorities is None else priorities * targets


def gradnorm_loss(gradient_norms: Tensor, target_norms: Tensor) -> Tensor:
    """`L_grad = Σ_i |G_i − Ḡ r_i^α|`: a sum over the tasks (eq. 2). [T], [T] → [].

    Examples:
        >>> gradnorm_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
        tensor(2.)
    """
    return (gradient_norms - target_norms).abs().nansum()


def weight_gradients(gradient_norms: Tensor, target_norms: Tensor, raw_norms: Tensor) -> Tensor:
    """`∂L_grad/∂w_i = sign(G_i − target_i) ‖∇_W L_i‖₂`, the targets held constant (§3.2). [T], [T], [T] → [T].

    `G_i` is linear in `w_i`, so no second-order graph is needed.

    Examples:
        >>> weight_gradients(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), torch.tensor([1.0, 3.0]))
        tensor([-1.,  3.])
    """
    return torch.sign(gradient_norms - target_norms) * raw_norms


def closed_form_weights(
    raw_norms: Tensor, rates: Tensor | None, alpha: float, priorities: Tensor | None = None
) -> Tensor:
    """`p_i r_i^α / ‖∇_W L_i‖`, to be rescaled: where `G_i ∝ p_i r_i^α` for all tasks (not in the paper). [T] → [T].

    `rates` may be `None` at α = 0, where they do not count.

    Examples:
        >>> weights = closed_form_weights(torch.tensor([1.0, 4.0]), torch.tensor([0.5, 2.0]), alpha=1.0)
        >>> renormalize(weights, 2.0)
        tensor([1., 1.])
    """
    weights = raw_norms.reciprocal()
    if alpha != 0.0 and rates is not None:
        weights = weights * rates**alpha
    return weights if priorities is None else priorities * weights


def bounded_rates(rates: Tensor, bound: float = 10.0) -> Tensor:
    """`r_i` clamped to [1/`bound`, `bound`], so that no loss near zero dominates (not in the paper). [T] → [T].

    Examples:
        >>> bounded_rates(torch.tensor([0.001, 1.0]))
        tensor([0.1000, 1.0000])
    """
    return rates.clamp(1 / bound, bound)


def renormalize(weights: Tensor, total: Tensor | float, min_weight: float = 0.0, is_complete: bool = False) -> Tensor:
    """`w_i ← total · w_i / Σ_j w_j`: keeps the balance apart from the learning rate (Algorithm 1). [T] → [T].

    Weights are clamped to `min_weight` first: the one deviation from the paper, which leaves open what becomes of a
    weight that an update takes below zero.

    Examples:
        >>> renormalize(torch.tensor([3.0, 1.0]), 2.0)
        tensor([1.5000, 0.5000])
    """
    floored = weights.clamp(min=min_weight)
    return floored * (total / (floored.sum() if is_complete else floored.nansum()))


def _mean(x: Tensor, is_complete: bool) -> Tensor:
    return x.mean() if is_complete else x.nanmean()
