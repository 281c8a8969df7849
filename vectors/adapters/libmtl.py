"""LibMTL's `GradNorm`; `--source` is the path of a checkout of LibMTL.

Its weights are `T · softmax` of a parameter in the network's optimizer: here an optimizer of that parameter alone, as
the vector has it. L(0), the mean of an epoch trained with equal weights, is given.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from _pytorch import batch_losses, double_precision, layer, network_gradient, refuse, stacked, zero_gradient

LACKS = ["a closed form", "a lower bound", "priorities", "missing tasks", "accumulation"]
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def run(settings: dict[str, Any], steps: list[Any], source: str | None = None) -> list[dict[str, Any]]:
    """One report per step."""
    refuse(settings, steps, LACKS)
    count, reports = len(steps[0][0]["losses"]), []
    with double_precision():
        W = layer(steps[0][0])
        weighting = _weighting(source)()
        weighting.task_num, weighting.device, weighting.rep_grad, weighting.epoch = count, "cpu", False, 1
        weighting.get_share_params, weighting.zero_grad_share_params = lambda: W, lambda: zero_gradient(W)
        weighting.train_loss_buffer = np.array([settings["initial_losses"] or steps[0][0]["losses"]]).T
        weighting.init_param()
        optimizer = OPTIMIZERS[settings["optimizer"]]([weighting.loss_scale], lr=settings["lr"])
        for (batch,) in steps:
            losses = batch_losses(W, batch, settings.get("curvature", 0.0))
            zero_gradient(W)
            optimizer.zero_grad()
            weighting.backward(stacked(losses), alpha=settings["alpha"])
            optimizer.step()
            weights = count * weighting.loss_scale.detach().softmax(-1)
            reports.append({"weights": weights.tolist(), "network_gradient": network_gradient(W)})
    return reports


def _weighting(source: str | None) -> Any:
    """The class, without the packages that LibMTL's other weightings need."""
    if source is None:
        raise SystemExit("--source must be the path of a checkout of LibMTL")
    for name in ("LibMTL", "LibMTL.weighting"):
        package = ModuleType(name)
        package.__path__ = [str(Path(source, *name.split(".")))]
        sys.modules[name] = package
    return importlib.import_module("LibMTL.weighting.GradNorm").GradNorm
