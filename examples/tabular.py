"""Three facts about real people from a table: visits to a doctor, chronic diseases, and how they rate their health.

The data are the RAND Health Insurance Experiment's, which come with statsmodels (`randhie`, public domain): 20,190
records of people who were given insurance plans by lot. From the plan and whether someone is limited in moving, predict

- visits: a count a year (Poisson likelihood),
- disease: an index from 0 to 59 (squared error in its own units, by far the largest loss),
- health: excellent, good, fair or poor, as rated by the person (cross entropy).

One network for all three by equal weights, by GradNorm, and one network for each. A person has a record a year, which
bear no name: records that agree in everything but the visits go together into training or into test.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _compare import Metrics, Results, compare, show
from gradnorm import GradNorm

HEADS = {"visits": 1, "disease": 1, "health": 4}
INPUTS = ["lncoins", "idp", "lpi", "fmde", "physlm"]


@cache
def records() -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Inputs [n, 5], standardized; targets [n] of each task; and the group, [n], that each record belongs to."""
    from statsmodels.datasets import randhie

    table: Any = randhie.load_pandas().data
    x = torch.tensor(table[INPUTS].to_numpy(), dtype=torch.float32)
    rated = torch.tensor(table[["hlthg", "hlthf", "hlthp"]].to_numpy())
    wanted = {
        "visits": torch.tensor(table["mdvis"].to_numpy(), dtype=torch.float32),
        "disease": torch.tensor(table["disea"].to_numpy(), dtype=torch.float32),
        "health": (rated * torch.tensor([1, 2, 3])).sum(1).long(),  # 0: excellent
    }
    group = torch.tensor(table.groupby([c for c in table if c != "mdvis"]).ngroup().to_numpy())
    return (x - x.mean(0)) / x.std(0), wanted, group


def trunk() -> nn.Sequential:
    """Inputs [n, 5] → features [n, 32]."""
    return nn.Sequential(nn.Linear(len(INPUTS), 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())


class Model(nn.Module):
    """One trunk for all tasks, or one for each, and a linear head a task."""

    def __init__(self, trunks: int) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunk() for _ in range(trunks))
        self.heads = nn.ModuleDict({task: nn.Linear(32, size) for task, size in HEADS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Log of the expected visits [n], the disease index [n], logits [n, 4]."""
        features = [t(x) for t in self.trunks]
        return {
            task: head(features[i % len(features)]).squeeze(-1) for i, (task, head) in enumerate(self.heads.items())
        }


def task_losses(predicted: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """One positive scalar a task; without `full=True` the Poisson loss could be negative, and have no training rate."""
    return {
        "visits": F.poisson_nll_loss(predicted["visits"], wanted["visits"], full=True),
        "disease": F.mse_loss(predicted["disease"], wanted["disease"]),
        "health": F.cross_entropy(predicted["health"], wanted["health"]),
    }


def run(method: str, steps: int) -> Metrics:
    """Train on 80 % of the groups, test on the rest."""
    x, wanted, group = records()
    in_test = torch.rand(int(group.max()) + 1)[group] < 0.2
    train, test = (~in_test).nonzero().squeeze(1), in_test.nonzero().squeeze(1)

    model = Model(trunks=3 if method == "single task" else 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    # Without a shared layer there is nothing to balance: the sum trains three networks as if each were alone.
    balancer = GradNorm(HEADS).freeze(method != "GradNorm")
    balancer.attach(optimizer)
    for _ in range(steps):
        rows = train[torch.randint(len(train), (256,))]
        loss = balancer(task_losses(model(x[rows]), {task: values[rows] for task, values in wanted.items()}))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.no_grad():
        found = task_losses(model(x[test]), {task: values[test] for task, values in wanted.items()})
    errors = {
        "visits, −log likelihood": found["visits"].item(),
        "disease, RMSE": found["disease"].sqrt().item(),
        "health, cross entropy": found["health"].item(),
    }
    return errors | {f"{task}, weight": w for task, w in zip(HEADS, balancer.weights.tolist(), strict=True)}


def main(steps: int = 1500, seeds: int = 3) -> Results:
    """The three methods, a few seeds."""
    return compare(run, ["single task", "equal weights", "GradNorm"], steps, seeds)


if __name__ == "__main__":
    show(main, __doc__)
