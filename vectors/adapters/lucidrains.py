"""gradnorm-pytorch, as installed by `pip install gradnorm-pytorch`."""

from __future__ import annotations

from typing import Any

import torch
from _pytorch import batch_losses, double_precision, layer, network_gradient, refuse, zero_gradient
from gradnorm_pytorch import GradNormLossWeighter

LACKS = ["a closed form", "Adam", "a lower bound", "priorities", "a W of several parameters"]


def run(settings: dict[str, Any], steps: list[Any], source: str | None = None) -> list[dict[str, Any]]:
    """One report per step; an absent task is a masked loss of zero."""
    refuse(settings, steps, LACKS)
    with double_precision():
        W = layer(steps[0][0])
        weighter: Any = GradNormLossWeighter(
            num_losses=len(steps[0][0]["losses"]),
            learning_rate=settings["lr"],
            restoring_force_alpha=settings["alpha"],
            grad_norm_parameters=W[0],
        ).double()
        if settings["initial_losses"] is not None:
            weighter.initial_losses.copy_(torch.tensor(settings["initial_losses"]))
            weighter.initted.fill_(True)
        return [_step(weighter, W, batches, settings.get("curvature", 0.0)) for batches in steps]


def _step(weighter: Any, W: list[torch.nn.Parameter], batches: list[Any], curvature: float) -> dict[str, Any]:
    zero_gradient(W)
    for number, batch in enumerate(batches, 1):
        found = batch_losses(W, batch, curvature)
        weighter.backward(
            [0.0 * W[0].sum() if loss is None else loss for loss in found],
            scale=1 / len(batches),
            grad_step=number == len(batches),
            loss_mask=[loss is not None for loss in found],
        )
    return {"weights": weighter.loss_weights.tolist(), "network_gradient": network_gradient(W)}
