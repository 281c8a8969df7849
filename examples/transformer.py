"""A transformer with five heads on one encoder, whose losses are unlike in kind and in scale.

From a sequence of 12 digits one encoder's features are to tell

- zeros: how many zeros there are (squared error, 2 at the start),
- sum: by how much the digits add up to more than usual (squared error, 100 at the start),
- first: which digit comes first (cross entropy, 2.3 at the start),
- order: whether the first half sums to more than the second (cross entropy, 0.7),
- rises: for each digit, whether it is larger than the one before it (cross entropy a token, 0.7).

Added up as they are, the sum is nearly all that the encoder hears of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _compare import Metrics, Results, compare, show
from gradnorm import GradNorm

LENGTH, DIGITS, WIDTH = 12, 10, 32
HEADS = {"zeros": 1, "sum": 1, "first": DIGITS, "order": 1, "rises": 1}


def targets(x: Tensor) -> dict[str, Tensor]:
    """Digits [n, 12] → the five properties."""
    return {
        "zeros": (x == 0).sum(1).float(),
        "sum": (x.sum(1) - LENGTH * (DIGITS - 1) / 2).float(),
        "first": x[:, 0],
        "order": (x[:, : LENGTH // 2].sum(1) > x[:, LENGTH // 2 :].sum(1)).float(),
        "rises": (x.diff(dim=1, prepend=x[:, :1]) > 0).float(),
    }


class Model(nn.Module):
    """Two encoder layers for all tasks; a head a task, on the mean over the tokens or on each token."""

    def __init__(self) -> None:
        super().__init__()
        self.digits = nn.Embedding(DIGITS, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.heads = nn.ModuleDict({task: nn.Linear(WIDTH, size) for task, size in HEADS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Digits [n, 12] → a prediction a task."""
        tokens = self.encoder(self.digits(x) + self.places)
        pooled = tokens.mean(1)
        return {task: head(tokens if task == "rises" else pooled).squeeze(-1) for task, head in self.heads.items()}


def task_losses(predicted: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """One scalar a task, each in its own units."""
    return {
        "zeros": F.mse_loss(predicted["zeros"], wanted["zeros"]),
        "sum": F.mse_loss(predicted["sum"], wanted["sum"]),
        "first": F.cross_entropy(predicted["first"], wanted["first"]),
        "order": F.binary_cross_entropy_with_logits(predicted["order"], wanted["order"]),
        "rises": F.binary_cross_entropy_with_logits(predicted["rises"], wanted["rises"]),
    }


@torch.no_grad()
def evaluate(model: Model) -> Metrics:
    """Errors in percent on fresh sequences: of the variance left unexplained, or of the answers wrong."""
    x = torch.randint(DIGITS, (2000, LENGTH))
    predicted, wanted = model(x), targets(x)
    errors = {t: F.mse_loss(predicted[t], wanted[t]) / wanted[t].var() for t in ("zeros", "sum")}
    errors["first"] = (predicted["first"].argmax(1) != wanted["first"]).float().mean()
    errors |= {t: ((predicted[t] > 0) != wanted[t].bool()).float().mean() for t in ("order", "rises")}
    percent = {f"{task}, error %": 100 * errors[task].item() for task in HEADS}
    return percent | {"mean error %": sum(percent.values()) / len(percent)}


def run(method: str, steps: int) -> Metrics:
    """Train one network."""
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    balancer = GradNorm(HEADS).freeze(method == "equal weights")  # frozen weights stay at 1
    balancer.attach(optimizer)
    for _ in range(steps):
        x = torch.randint(DIGITS, (64, LENGTH))
        loss = balancer(task_losses(model(x), targets(x)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return evaluate(model) | {f"{t}, weight": w for t, w in zip(HEADS, balancer.weights.tolist(), strict=True)}


def main(steps: int = 600, seeds: int = 3) -> Results:
    """Both methods, a few seeds."""
    return compare(run, ["equal weights", "GradNorm"], steps, seeds)


if __name__ == "__main__":
    show(main, __doc__)
