"""dav-ell/gradnorm; `--source` is the path of its `gradnorm.py`."""

from __future__ import annotations

from typing import Any

import torch
from _pytorch import batch_losses, double_precision, layer, load, network_gradient, refuse, stacked, zero_gradient

LACKS = ["a closed form", "Adam", "a lower bound", "priorities", "missing tasks", "accumulation"]


def run(settings: dict[str, Any], steps: list[Any], source: str | None = None) -> list[dict[str, Any]]:
    """One report per step, in the order of its README."""
    refuse(settings, steps, LACKS)
    reports = []
    with double_precision():
        W = torch.nn.ParameterList(layer(steps[0][0]))
        count = len(steps[0][0]["losses"])
        gradnorm = load(source, "gradnorm.py").GradNorm(W, settings["alpha"], count, lr=settings["lr"])
        if settings["initial_losses"] is not None:
            gradnorm.L_i_0 = torch.tensor(settings["initial_losses"])
        for (batch,) in steps:
            losses = stacked(batch_losses([*W], batch, settings.get("curvature", 0.0)))
            zero_gradient([*W])
            (gradnorm.w_i * losses).sum().backward(retain_graph=True)
            L_grad = gradnorm.gradnorm(losses)
            gradnorm.apply_grads(L_grad)
            reports.append(
                {
                    "gradnorm_loss": L_grad.item(),
                    "weight_gradients": gradnorm.w_i.grad.tolist(),
                    "weights": gradnorm.w_i.tolist(),
                    "network_gradient": network_gradient([*W]),
                }
            )
    return reports
