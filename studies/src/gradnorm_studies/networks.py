"""Networks of several studies, and the splitting of rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


def perceptron(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers of these sizes, an activation after each."""
    layers = [(nn.Linear(m, n), activation()) for m, n in pairwise(sizes)]
    return nn.Sequential(*(part for pair in layers for part in pair))


class HardSharing(nn.Module):
    """A ReLU trunk for all tasks, or one per task, and an affine head per task.

    Args:
        sizes: Sizes of the input and of the trunk's layers.
        outputs: Size of each head's output.
        is_shared: Whether there is one trunk; otherwise there is one per task.
    """

    def __init__(self, sizes: Sequence[int], outputs: Sequence[int], *, is_shared: bool = True) -> None:
        super().__init__()
        trunks = 1 if is_shared else len(outputs)
        self.heads = nn.ModuleList(nn.Linear(sizes[-1], n) for n in outputs)
        self.trunks = nn.ModuleList(perceptron(sizes, nn.ReLU) for _ in range(trunks))

    @property
    def last_shared(self) -> nn.Module:
        """The last layer of the trunk, the paper's `W` where it is shared."""
        return [layer for layer in self.trunks[0].children() if isinstance(layer, nn.Linear)][-1]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[n, inputs] → [n, outputs] per task."""
        features = [trunk(x) for trunk in self.trunks]
        return [head(features[i % len(features)]) for i, head in enumerate(self.heads)]


class Rows(NamedTuple):
    """Row numbers of a data set: three fifths, one fifth and one fifth."""

    train: Tensor
    validation: Tensor
    test: Tensor


def split_rows(count: int, seed: int) -> Rows:
    """A random split of `count` rows."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return Rows(*order.split([count - 2 * (count // 5), count // 5, count // 5]))


def standardize(values: Tensor, train: Tensor) -> Tensor:
    """Columns less their mean, over their standard deviation, both of the rows `train`; in float32."""
    mean, deviation = values[train].mean(0), values[train].std(0)
    return ((values - mean) / deviation.clamp(min=1e-6)).float()


def explained(output: Tensor, wanted: Tensor) -> float:
    """R² in percent: the share of the variance that is explained."""
    return 100 * (1 - ((output - wanted).square().mean() / wanted.var(correction=0)).item())
