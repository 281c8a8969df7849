"""One training step under each method: same network, same batch, same Adam; only the way to the gradients differs.

A method is a function from a `Training` to a step without arguments. The peers run from their own packages, called
as their documentation says; `double backward` is Algorithm 1 written literally, the usual snippet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from gradnorm_pytorch import GradNormLossWeighter
from torch import Tensor
from torchjd.aggregation import Mean
from torchjd.autojac import jac_to_grad, mtl_backward

import gradnorm
from gradnorm import GradNorm
from models import Workload

ALPHA = 1.5
Step = Callable[[], None]


class Training:
    """A workload with its optimizer.

    Args:
        workload: Network, batch and losses; this object trains the network in place.
    """

    def __init__(self, workload: Workload):
        self.workload = workload
        self.model = workload.model
        self.tasks = len(workload.loss_functions)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)

    def losses(self) -> list[Tensor]:
        """The forward pass: one scalar per task."""
        return self.workload.losses(self.model(self.workload.inputs))

    def descend(self, loss: Tensor) -> None:
        """Backward and optimizer step."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def equal(training: Training) -> Step:
    """The sum of the losses: what every ratio is taken to."""

    def step() -> None:
        training.descend(torch.stack(training.losses()).sum())

    return step


def ours(training: Training, **options: object) -> Step:
    """This package.

    Args:
        training: What to train.
        options: Further arguments of `GradNorm`.
    """
    balancer = GradNorm(training.tasks, shared=training.model.shared, alpha=ALPHA, **options)  # pyright: ignore

    def step() -> None:
        training.descend(balancer(training.losses()))
        balancer.step()

    return step


def watched(training: Training) -> Step:
    """This package's `monitor`: the plain sum, measured in every tenth step."""
    monitor = gradnorm.monitor(training.tasks, shared=training.model.shared)

    def step() -> None:
        training.descend(monitor(training.losses()))
        monitor.step()

    return step


def floor(training: Training) -> Step:
    """Equal weights plus T vector-Jacobian products from the features to `W`: the least any exact method can do.

    Every head gets its own leaf, so that the one backward through the heads leaves each task's feature gradient.
    """
    model, workload = training.model, training.workload

    def step() -> None:
        training.optimizer.zero_grad()
        features = model.trunk(workload.inputs)
        leaves = [features.detach().requires_grad_() for _ in model.heads]
        outputs = [head(leaf) for head, leaf in zip(model.heads, leaves, strict=True)]
        torch.stack(workload.losses(outputs)).sum().backward()
        total = torch.zeros_like(features)
        for leaf in leaves:
            torch.autograd.grad(features, model.shared, leaf.grad, retain_graph=True)
            total += leaf.grad
        features.backward(total)
        training.optimizer.step()

    return step


def gradnorm_pytorch(training: Training) -> Step:
    """The package gradnorm-pytorch, whose weighter calls backward itself."""
    weighter = GradNormLossWeighter(
        num_losses=training.tasks,
        restoring_force_alpha=ALPHA,
        grad_norm_parameters=training.model.shared,  # pyright: ignore[reportArgumentType]
    )

    def step() -> None:
        training.optimizer.zero_grad()
        weighter.backward(training.losses())
        training.optimizer.step()

    return step


def torchjd_mtl(training: Training) -> Step:
    """TorchJD's Jacobian over all shared parameters, under its cheapest aggregator.

    Parameters are named rather than searched for at every step, and products run one after the other: on these
    networks `parallel_chunk_size=1` was as fast as the default vmap or faster.
    """
    model, workload = training.model, training.workload
    shared = list(model.trunk.parameters())
    heads = [list(head.parameters()) for head in model.heads]
    aggregator = Mean()

    def step() -> None:
        training.optimizer.zero_grad()
        features = model.trunk(workload.inputs)
        losses = workload.losses([head(features) for head in model.heads])
        mtl_backward(losses, features, tasks_params=heads, shared_params=shared, parallel_chunk_size=1)
        jac_to_grad(shared, aggregator)
        training.optimizer.step()

    return step


def double_backward(training: Training) -> Step:
    """Algorithm 1, line by line, with `create_graph=True`."""
    tasks, shared = training.tasks, training.model.shared
    weights = torch.ones(tasks, device=shared.device, requires_grad=True)
    weight_optimizer = torch.optim.Adam([weights], lr=0.025)
    initial: list[Tensor] = []

    def step() -> None:
        losses = torch.stack(training.losses())
        if not initial:
            initial.append(losses.detach())
        weighted = weights * losses
        training.optimizer.zero_grad()
        weighted.sum().backward(retain_graph=True)
        gradients = [torch.autograd.grad(loss, shared, create_graph=True)[0] for loss in weighted]
        norms = torch.stack([gradient.norm() for gradient in gradients])
        ratios = losses.detach() / initial[0]
        targets = norms.detach().mean() * (ratios / ratios.mean()) ** ALPHA
        weights.grad = torch.autograd.grad((norms - targets).abs().sum(), weights)[0]
        training.optimizer.step()
        weight_optimizer.step()
        with torch.no_grad():
            weights.mul_(tasks / weights.sum())

    return step


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        prepare: Makes the step.
        period: Steps after which its cost repeats.
        peer: Whether it is another package or snippet, to compare with.
    """

    prepare: Callable[[Training], Step]
    period: int = 1
    peer: bool = False


METHODS: dict[str, Method] = {
    "equal": Method(equal),
    "gradnorm": Method(ours, period=10),  # cosines in every tenth step
    "gradnorm closed-form": Method(partial(ours, update="closed-form"), period=10),
    "gradnorm every=10": Method(partial(ours, every=10), period=10),
    "monitor": Method(watched, period=10),
    'gradnorm at="features"': Method(partial(ours, at="features")),
    "floor": Method(floor),
    "gradnorm-pytorch": Method(gradnorm_pytorch, peer=True),
    "torchjd mtl_backward": Method(torchjd_mtl, peer=True),
    "double backward": Method(double_backward, peer=True),
}
