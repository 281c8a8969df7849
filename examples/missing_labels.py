"""Labels missing from some rows, or from whole batches: the right way, and what the obvious wrong one costs.

Three quantities of unlike scale are read off the same inputs; all rows have the first label, one in four the second,
one in sixty-four the third, so that many batches of 32 hold no third label at all. The right way has two parts:

- *within* a batch, the mean over the rows that have the label. A mean over all rows, with zeros where a label is
  missing, makes a rare task look small: it scales the task's loss and gradient by its share in this batch;
- for a batch *without* a label of a task, leave the task out, or give `None`: its weight and statistics stay. A loss
  of 0 would count as a task that has reached its goal; the NaN of an empty mean keeps all weights from being updated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from _compare import Metrics, Results, compare, show
from gradnorm import GradNorm

INPUTS, BATCH = 8, 32
SCALES = {"often": 3.0, "sometimes": 1.0, "rarely": 1.0}
SHARES = {"often": 1.0, "sometimes": 1 / 4, "rarely": 1 / 64}


class Model(nn.Module):
    """A trunk and a linear head a task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(INPUTS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.heads = nn.ModuleDict({task: nn.Linear(64, 1) for task in SCALES})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Inputs [n, 8] → [n] a task."""
        features = self.trunk(x)
        return {task: head(features).squeeze(1) for task, head in self.heads.items()}


def quantities(x: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """What is to be predicted: for each task the sine of another projection, and of the one that all share."""
    waves = torch.sin(x @ directions)
    return {task: scale * (waves[:, i] + waves[:, 3]) for i, (task, scale) in enumerate(SCALES.items())}


def labeled(wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The labels as they come from a table with gaps: NaN where there is none."""
    return {t: torch.where(torch.rand(len(y)) < SHARES[t], y, torch.nan) for t, y in wanted.items()}


def task_losses(predicted: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """The right way: the mean over the rows with a label; `None` if there are none."""
    losses: dict[str, Tensor | None] = {}
    for task, label in labels.items():
        known = label.isfinite()  # select before computing: 0 · NaN is NaN, in the gradient too
        losses[task] = (predicted[task][known] - label[known]).square().mean() if known.any() else None
    return losses


def over_all_rows(predicted: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """The wrong way: the mean over all rows, missing ones counted as if they had been met."""
    found = task_losses(predicted, labels)
    return {t: None if loss is None else loss * labels[t].isfinite().float().mean() for t, loss in found.items()}


def run(method: str, steps: int) -> Metrics:
    """Train one network."""
    directions = torch.randn(INPUTS, 4) / 2
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    # L(0) is the mean of each task's first 20 losses: one loss of one row, as it often is here, would be luck.
    balancer = GradNorm(SCALES, shared=model.trunk[2].weight, initial_losses=20)
    balancer.freeze(method == "equal weights")  # frozen weights stay at 1
    balancer.attach(optimizer)
    losses_of = over_all_rows if method == "GradNorm, all rows" else task_losses
    for _ in range(steps):
        x = torch.randn(BATCH, INPUTS)
        loss = balancer(losses_of(model(x), labeled(quantities(x, directions))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.no_grad():
        x = torch.randn(5000, INPUTS)
        predicted, wanted = model(x), quantities(x, directions)
    errors = {f"{t}, error %": 100 * ((predicted[t] - y).var() / y.var()).item() for t, y in wanted.items()}
    return errors | {f"{task}, weight": w for task, w in zip(SCALES, balancer.weights.tolist(), strict=True)}


def main(steps: int = 2000, seeds: int = 3) -> Results:
    """The methods, a few seeds."""
    return compare(run, ["equal weights", "GradNorm", "GradNorm, all rows"], steps, seeds)


if __name__ == "__main__":
    show(main, __doc__)
