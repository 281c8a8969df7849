"""This repository's own `gradnorm`."""

from __future__ import annotations

from typing import Any

import torch
from _pytorch import batch_losses, layer, network_gradient, zero_gradient

from gradnorm import ClosedForm, Descent, GradNorm, functional

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def run(settings: dict[str, Any], steps: list[Any], source: str | None = None) -> list[dict[str, Any]]:
    """One report per step."""
    W = layer(steps[0][0])
    balancer = GradNorm(
        len(steps[0][0]["losses"]),
        shared=W,
        alpha=settings["alpha"],
        update=_update(settings),
        initial_weights=settings.get("initial_weights"),
        initial_losses=settings["initial_losses"],
        priorities=settings["priorities"],
    ).double()
    reports = []
    for batches in steps:
        zero_gradient(W)
        for batch in batches:
            losses = batch_losses(W, batch, settings.get("curvature", 0.0))
            (balancer(losses) / len(batches)).backward()
        before = balancer.weights.clone()
        balancer.step()
        reports.append({**_report(balancer, before), "network_gradient": network_gradient(W)})
    return reports


def _update(settings: dict[str, Any]) -> ClosedForm | Descent:
    if settings["update"] == "closed-form":
        return ClosedForm(settings["smoothing"])
    return Descent(settings["lr"], OPTIMIZERS[settings["optimizer"]], settings["min_weight"])


def _report(balancer: GradNorm, before: torch.Tensor) -> dict[str, Any]:
    """The last step's numbers, of the tasks that were present."""
    figures = balancer.log_dict("")
    present = [i for i, task in enumerate(balancer.tasks) if f"norm/{task}" in figures]
    G, targets, rates = (
        torch.tensor([figures[f"{kind}/{balancer.tasks[i]}"] for i in present], dtype=torch.float64)
        for kind in ("norm", "target", "rate")
    )
    raw_norms = G / before[present]
    return {
        "gradient_norms": G.tolist(),
        "inverse_training_rates": rates.tolist(),
        "target_norms": targets.tolist(),
        "gradnorm_loss": functional.gradnorm_loss(G, targets).item(),
        "weight_gradients": functional.weight_gradients(G, targets, raw_norms).tolist(),
        "weights": balancer.weights.tolist(),
    }
