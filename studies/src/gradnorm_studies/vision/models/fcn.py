"""FCN (§5): a thinned ResNet-50 encoder, and a shallow ResNet decoder with learned upsampling.

Thinned: the layers of 2,048 filters have 1,024, as the stage before them. A stage's stride is in its first layer, as
early as it can be (He et al.; most later code has it in the 3×3 layer behind). The paper leaves the decoder open: here
each doubling is a transposed convolution and one residual block, as many filters as 15 M parameters allow.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .dense import Dense, Head, normed, rectified, scaled

STAGES = ((64, 3), (128, 4), (256, 6), (256, 3))
"""Filters within a block, a quarter of what it gives, and blocks; ResNet-50 has 512 in the last stage."""

DECODER = (192, 128, 64)
"""Decoder filters at 1/16, 1/8 and 1/4 of the image's size."""


class Residual(nn.Module):
    """`relu(shortcut(x) + body(x))`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        # In the order of use, so that the last convolution that `modules()` lists is the last one used.
        self.shortcut = shortcut
        self.body = body
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] → [B, outputs, h / stride, w / stride]."""
        return self.relu(self.shortcut(x) + self.body(x))


def bottleneck(inputs: int, filters: int, stride: int) -> Residual:
    """1×1, 3×3, 1×1 convolutions; `filters` within, four times as many out of it."""
    outputs = 4 * filters
    same = stride == 1 and inputs == outputs
    shortcut = nn.Identity() if same else normed(inputs, outputs, 1, stride)
    body = nn.Sequential(
        rectified(inputs, filters, 1, stride), rectified(filters, filters), normed(filters, outputs, 1)
    )
    return Residual(body, shortcut)


def doubling(inputs: int, filters: int) -> nn.Sequential:
    """Twice the height and width, learned, and a residual block of two 3×3 convolutions."""
    body = nn.Sequential(rectified(filters, filters), normed(filters, filters))
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, filters, 2, stride=2, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
        Residual(body, nn.Identity()),
    )


class FCN(Dense):
    """Thinned ResNet-50 and a shallow decoder; 14.9 M parameters for the three tasks of NYUv2.

    Args:
        heads: By the tasks' names.
        width: Factor on all numbers of filters; 1 is the paper's network.

    Examples:
        >>> import torch
        >>> network = FCN({"segmentation": Head(13), "depth": Head(1)}, width=1 / 16)
        >>> network(torch.rand(2, 3, 64, 96))["segmentation"].shape
        torch.Size([2, 13, 16, 24])
    """

    def __init__(self, heads: Mapping[str, Head], width: float = 1.0) -> None:
        encoded = 4 * scaled(STAGES[-1][0], width)
        super().__init__(heads, encoded, decoded=scaled(DECODER[-1], width))
        filters = scaled(64, width)
        self.stem = nn.Sequential(rectified(3, filters, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
        blocks = []
        for stage, (within, count) in enumerate(STAGES):
            for block in range(count):
                stride = 2 if stage and not block else 1
                blocks.append(bottleneck(filters, scaled(within, width), stride))
                filters = 4 * scaled(within, width)
        self.encoder = nn.Sequential(*blocks)
        steps = []
        for outputs in () if all(head.whole for head in heads.values()) else DECODER:
            steps.append(doubling(filters, scaled(outputs, width)))
            filters = scaled(outputs, width)
        self.decoder = nn.Sequential(*steps)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] → [B, 1024, H/32, W/32], [B, 64, H/4, W/4]."""
        encoded = self.encoder(self.stem(image))
        return encoded, self.decoder(encoded)
