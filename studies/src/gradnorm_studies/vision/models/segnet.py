"""SegNet (§5): a VGG16 encoder, and its mirror image with max-unpooling as decoder.

The decoder stops where its maps have the size of the output, a quarter of the image's: the mirror images of the first
two stages would only enlarge what is then made small again, and hold less than 1 % of the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from .dense import Dense, Head, rectified, scaled

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Filters of each convolution by stage; every stage ends in a max-pooling."""

UNDECODED = 2
"""Encoder stages without a mirror image: the output is 2² = 4 times smaller."""


class SegNet(Dense):
    """VGG16 with batch norm, encoder and decoder; 29.2 M parameters for the three tasks of NYUv2.

    Args:
        heads: By the tasks' names.
        width: Factor on all numbers of filters; 1 is the paper's network.

    Examples:
        >>> import torch
        >>> network = SegNet({"segmentation": Head(13), "depth": Head(1)}, width=1 / 16)
        >>> network(torch.rand(2, 3, 64, 96))["segmentation"].shape
        torch.Size([2, 13, 16, 24])
    """

    def __init__(self, heads: Mapping[str, Head], width: float = 1.0) -> None:
        stages = [[scaled(filters, width) for filters in stage] for stage in VGG16]
        layers = iter(pairwise([3, *(filters for stage in stages for filters in stage)]))
        down = [[next(layers) for _ in stage] for stage in stages]
        up = [[(outputs, inputs) for inputs, outputs in reversed(stage)] for stage in reversed(down[UNDECODED:])]
        super().__init__(heads, encoded=stages[-1][-1], decoded=up[-1][-1][1])
        self.encoder = nn.ModuleList(nn.Sequential(*(rectified(*layer) for layer in stage)) for stage in down)
        mirrored = [] if all(head.whole for head in heads.values()) else up
        self.decoder = nn.ModuleList(nn.Sequential(*(rectified(*layer) for layer in stage)) for stage in mirrored)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] → [B, 512, H/32, W/32], [B, 128, H/4, W/4]."""
        x, places = image, []
        for stage in self.encoder:
            x, where = F.max_pool2d_with_indices(stage(x), [2, 2])
            places.append(where)
        encoded = x
        for stage in self.decoder:
            x = stage(F.max_unpool2d(x, places.pop(), [2, 2]))
        return encoded, x
