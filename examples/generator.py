"""A generator with three discriminators, each of which sees its samples in another way.

The data are eight small clusters on a circle. One discriminator sees the points, one their distance from the center
only, and one four points at a time, so that it notices missing clusters. The generator's three losses pull unevenly;
`GradNorm` weighs them. How to put it into a game with two sides:

- balance the generator's losses only; the discriminators have their own optimizer, and their losses no weights;
- attach the balancer to the generator's optimizer; `shared=` is the generator's last layer;
- the backward of the generator's loss also fills the discriminators' `.grad`: clear it before their own backward;
- losses must be positive: the non-saturating `softplus(−D(G(z)))` is, a hinge or Wasserstein loss `−D(G(z))` is not;
- these losses do not fall as others do. Where a discriminator is undecided they are log 2: that is their `L(0)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _compare import Metrics, Results, compare, show
from gradnorm import GradNorm

CLUSTERS, SPREAD, NOISE, PACK = 8, 0.1, 8, 4
VIEWS = {"points": 2, "radius": 1, "packs": 2 * PACK}
"""What each discriminator sees, and how many numbers that is."""


def real(n: int) -> Tensor:
    """Points of the eight clusters, [n, 2]."""
    angle = 2 * math.pi / CLUSTERS * torch.randint(CLUSTERS, (n,))
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + SPREAD * torch.randn(n, 2)


def views(points: Tensor) -> dict[str, Tensor]:
    """The same points, [n, 2], as each discriminator sees them."""
    return {"points": points, "radius": points.norm(dim=1, keepdim=True), "packs": points.reshape(-1, 2 * PACK)}


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Generator or discriminator."""
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
    )


@torch.no_grad()
def evaluate(generator: nn.Module) -> Metrics:
    """How far the samples' distribution is from the data's, and which clusters they reach."""
    fake, data, other = generator(torch.randn(2000, NOISE)), real(2000), real(2000)
    energy = 2 * torch.cdist(fake, data).mean() - torch.cdist(fake, fake).mean() - torch.cdist(data, other).mean()
    angle = 2 * math.pi / CLUSTERS * torch.arange(CLUSTERS)
    nearest = torch.cdist(fake, 2 * torch.stack([angle.cos(), angle.sin()], 1)).min(1)
    inside = nearest.values < 3 * SPREAD
    share = nearest.indices[inside].bincount(minlength=CLUSTERS) / len(fake)
    return {
        "energy distance": energy.item(),
        "samples in a cluster, %": 100 * inside.float().mean().item(),
        "clusters reached, of 8": float((share > 0.02).sum()),
    }


def run(method: str, steps: int) -> Metrics:
    """Train one generator and its discriminators."""
    generator = mlp(NOISE, 2)
    discriminators = nn.ModuleDict({view: mlp(size, 1) for view, size in VIEWS.items()})
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    discriminator_optimizer = torch.optim.Adam(discriminators.parameters(), lr=1e-3, betas=(0.5, 0.9))
    balancer = GradNorm(VIEWS, shared=generator[-1].weight, initial_losses=dict.fromkeys(VIEWS, math.log(2)))
    balancer.freeze(method == "equal weights")  # frozen weights stay at 1
    balancer.attach(generator_optimizer)

    for _ in range(steps):
        fake, data = generator(torch.randn(128, NOISE)), real(128)

        seen, true = views(fake.detach()), views(data)
        verdicts = [F.softplus(d(seen[v])).mean() + F.softplus(-d(true[v])).mean() for v, d in discriminators.items()]
        discriminator_optimizer.zero_grad()
        torch.stack(verdicts).sum().backward()
        discriminator_optimizer.step()

        seen = views(fake)
        loss = balancer({v: F.softplus(-d(seen[v])).mean() for v, d in discriminators.items()})
        generator_optimizer.zero_grad()
        loss.backward()
        generator_optimizer.step()
    return evaluate(generator) | {f"{v}, weight": w for v, w in zip(VIEWS, balancer.weights.tolist(), strict=True)}


def main(steps: int = 1500, seeds: int = 3) -> Results:
    """Both methods, a few seeds."""
    return compare(run, ["equal weights", "GradNorm"], steps, seeds)


if __name__ == "__main__":
    show(main, __doc__)
