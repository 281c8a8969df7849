"""LucasBoTang/GradNorm; `--source` is the path of its `gradnorm.py`.

Its function trains a network to the end. Here the network is the losses of a vector, and its learning rate is 0. Where
a vector asks for gradient descent its Adam is replaced by that, so that the rule shows. L(0) is given by a step before
the first whose gradients are zero, and which therefore leaves the weights as they are.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from _pytorch import batch_losses, double_precision, layer, load, network_gradient, refuse, stacked
from torch import Tensor, nn

LACKS = ["a closed form", "a lower bound", "priorities", "missing tasks", "accumulation"]


class Net(nn.Module):
    """Losses of one batch after another; keeps the gradient that the last one left."""

    def __init__(self, batches: list[Any], curvature: float) -> None:
        super().__init__()
        self.layer = nn.ParameterList(layer(batches[0]))
        self.batches, self.curvature = batches, curvature
        self.gradients: list[Any] = []

    def forward(self, number: Tensor) -> Tensor:
        """[T], the losses of this batch."""
        self.gradients.append(network_gradient([*self.layer]))
        return stacked(batch_losses([*self.layer], self.batches[int(number)], self.curvature))


def run(settings: dict[str, Any], steps: list[Any], source: str | None = None) -> list[dict[str, Any]]:
    """One report per step; what a step has left is seen in the next, so that one more is made."""
    refuse(settings, steps, LACKS)
    batches = [batch for (batch,) in steps]
    if settings["initial_losses"] is not None:
        zeros = [[[0.0] * len(part) for part in parts] for parts in batches[0]["gradients"]]
        batches.insert(0, {"losses": settings["initial_losses"], "gradients": zeros})
    batches.append(batches[-1])
    implementation = load(source, "gradnorm.py")
    if settings["optimizer"] == "sgd":
        optim = SimpleNamespace(Adam=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr))
        implementation.torch = SimpleNamespace(**{**vars(torch), "optim": optim})
    with double_precision():
        net = Net(batches, settings.get("curvature", 0.0))
        numbers = [[torch.tensor(i)] for i in range(len(batches))]
        weights, _ = implementation.gradNorm(
            net, net.layer, settings["alpha"], numbers, num_epochs=1, lr1=0.0, lr2=settings["lr"], log=True
        )
    reports = [
        {"weights": w.tolist(), "network_gradient": gradient}
        for w, gradient in zip(weights[1:], net.gradients[1:], strict=True)
    ]
    return reports[-len(steps) :]
