"""The networks whose training step is timed: a trunk that all tasks share, one head per task.

Each network is an ordinary `nn.Module` that knows nothing of benchmarks. A `Workload` adds what a training step
needs: the batch, a loss per task, and the name of the last shared weight `W`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradnorm_studies.vision.models.dense import Head
from gradnorm_studies.vision.models.segnet import SegNet

Loss = Callable[[Tensor, Tensor], Tensor]


class MultiTask(nn.Module):
    """A shared trunk and one head per task.

    Args:
        trunk: Maps the input to the features that every head reads.
        heads: One module per task.
        last_shared: The name, inside the trunk, of its last weight with two or more dimensions.
    """

    def __init__(self, trunk: nn.Module, heads: Sequence[nn.Module], last_shared: str):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleList(heads)
        self._last_shared = last_shared

    @property
    def shared(self) -> nn.Parameter:
        """The last shared weight, the paper's `W`."""
        return self.trunk.get_parameter(self._last_shared)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """One output per task."""
        features = self.trunk(inputs)
        return [head(features) for head in self.heads]


def mlp(inputs: int, hidden: int, depth: int, outputs: int, tasks: int) -> MultiTask:
    """The paper's toy network (§4): `depth` ReLU layers, then one affine head per task."""
    widths = [inputs] + [hidden] * depth
    layers = [layer for fan_in, fan_out in pairwise(widths) for layer in (nn.Linear(fan_in, fan_out), nn.ReLU())]
    heads = [nn.Linear(hidden, outputs) for _ in range(tasks)]
    return MultiTask(nn.Sequential(*layers), heads, f"{2 * (depth - 1)}.weight")


def conv_block(fan_in: int, fan_out: int, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1),
        nn.BatchNorm2d(fan_out),
        nn.ReLU(inplace=True),
    )


class SegNetTrunk(nn.Module):
    """The studies' SegNet (§5) without its heads.

    Args:
        width: Factor on all numbers of filters; 1 is the paper's network.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.network = SegNet({"any": Head(1)}, width)
        self.network.heads.clear()

    def forward(self, image: Tensor) -> Tensor:
        """Features at a quarter of the input's resolution."""
        return self.network.features(image)[1]


def segnet(channels: Sequence[int], width: float = 1.0) -> MultiTask:
    """The paper's SegNet: all shared but one output convolution per task, of `channels` channels."""
    trunk = SegNetTrunk(width)
    last = trunk.network.last_shared
    (name,) = (name for name, layer in trunk.named_modules() if layer is last)
    return MultiTask(trunk, [nn.Conv2d(last.out_channels, outputs, 1) for outputs in channels], f"{name}.weight")


def heavy_heads(channels: Sequence[int], width: int) -> MultiTask:
    """A convolutional trunk at a quarter of the resolution, and heads of three convolutions each.

    This is the shape of dense-prediction models, whose decoders belong to the tasks.
    """
    trunk = nn.Sequential(
        conv_block(3, width, stride=2),
        conv_block(width, width),
        conv_block(width, 2 * width, stride=2),
        *(conv_block(2 * width, 2 * width) for _ in range(4)),
    )
    heads = [
        nn.Sequential(
            conv_block(2 * width, 2 * width),
            conv_block(2 * width, 2 * width),
            conv_block(2 * width, width),
            nn.Conv2d(width, out, 1),
        )
        for out in channels
    ]
    return MultiTask(trunk, heads, f"{len(trunk) - 1}.0.weight")


class TextEncoder(nn.Module):
    """Token and position embeddings, pre-norm transformer layers, mean over the positions."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, nhead=width // 32, dim_feedforward=4 * width, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """One feature vector a sequence."""
        x = self.tokens(tokens) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).mean(dim=1)


def transformer(
    classes: Sequence[int], width: int, depth: int, *, vocabulary: int = 8000, length: int = 64
) -> MultiTask:
    """A text encoder with a two-layer classifier per task; `W` is the last feed-forward output weight."""
    trunk = TextEncoder(vocabulary, length, width, depth)
    heads = [nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out)) for out in classes]
    return MultiTask(trunk, heads, f"layers.{depth - 1}.linear2.weight")


def cosine_loss(output: Tensor, target: Tensor) -> Tensor:
    """1 − cos between predicted and true surface normals, mean over the pixels."""
    return (1 - F.cosine_similarity(output, target, dim=1)).mean()


@dataclass
class Workload:
    """What one training step needs.

    Attributes:
        model: The network.
        inputs: One batch, used at every step.
        targets: One tensor per task.
        loss_functions: One per task, of output and target.
    """

    model: MultiTask
    inputs: Tensor
    targets: Sequence[Tensor]
    loss_functions: Sequence[Loss]

    def losses(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """One scalar per task."""
        return [
            loss(output, target)
            for loss, output, target in zip(self.loss_functions, outputs, self.targets, strict=True)
        ]

    def to(self, device: str) -> "Workload":
        """The same step with model and batch on `device`."""
        return Workload(
            self.model.to(device),
            self.inputs.to(device),
            [target.to(device) for target in self.targets],
            self.loss_functions,
        )


@dataclass(frozen=True)
class Benchmark:
    """A workload by name, and how its steps are dealt out in a round.

    Attributes:
        title: How tables and figures call it.
        build: Makes a fresh workload.
        tasks: T.
        burst: Steps that a method runs on end; small steps need several to rise above the clock.
        turns: Bursts of each method in a round.
        peers: Whether other packages are timed too; at T = 256 one of their steps takes seconds.
    """

    title: str
    build: Callable[[], Workload] = field(repr=False)
    tasks: int
    burst: int = 1
    turns: int = 2
    peers: bool = True


def regression(model: MultiTask, batch: int, inputs: int, outputs: int) -> Workload:
    """Squared errors on vectors, one per task."""
    tasks = len(model.heads)
    targets = [torch.randn(batch, outputs) for _ in range(tasks)]
    return Workload(model, torch.randn(batch, inputs), targets, [F.mse_loss] * tasks)


def scenes(model: MultiTask, batch: int, size: int, output_size: int) -> Workload:
    """The paper's three dense tasks: segmentation into 13 classes, depth, surface normals."""
    shape = (output_size, output_size)
    targets = [
        torch.randint(13, (batch, *shape)),
        torch.rand(batch, 1, *shape),
        F.normalize(torch.randn(batch, 3, *shape), dim=1),
    ]
    losses = [F.cross_entropy, F.mse_loss, cosine_loss]
    return Workload(model, torch.rand(batch, 3, size, size), targets, losses)


def texts(model: MultiTask, batch: int, classes: Sequence[int], *, vocabulary: int, length: int) -> Workload:
    """Several classifications of the same token sequences."""
    targets = [torch.randint(count, (batch,)) for count in classes]
    tokens = torch.randint(vocabulary, (batch, length))
    return Workload(model, tokens, targets, [F.cross_entropy] * len(classes))


def _transformer(classes: Sequence[int] = (2, 3, 5, 10, 50)) -> Workload:
    size = {"vocabulary": 8000, "length": 64}
    return texts(transformer(classes, width=256, depth=6, **size), 16, classes, **size)


def _linear(tasks: int) -> Benchmark:
    def build() -> Workload:
        return regression(mlp(256, 256, 3, 16, tasks), 128, 256, 16)

    return Benchmark(f"linear heads, T={tasks}", build, tasks, burst=5, peers=tasks <= 16)


LINEAR_TASKS = (2, 4, 16, 64, 256)

BENCHMARKS: dict[str, Benchmark] = {
    "toy": Benchmark("toy MLP, T=10", lambda: regression(mlp(250, 100, 4, 100, 10), 100, 250, 100), 10, burst=10),
    "segnet": Benchmark("SegNet 29 M, 160×160, T=3", lambda: scenes(segnet((13, 1, 3)), 2, 160, 40), 3),
    "heavy": Benchmark("conv net, heavy heads, T=3", lambda: scenes(heavy_heads((13, 1, 3), width=48), 8, 96, 24), 3),
    "transformer": Benchmark("transformer, T=5", _transformer, 5),
    **{f"linear-{tasks}": _linear(tasks) for tasks in LINEAR_TASKS},
}
