"""The common base of both families: a shared encoder–decoder, and a head per task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

STRIDE = 32
"""Divisor of the images' height and width: both encoders halve them five times."""


@dataclass(frozen=True)
class Head:
    """The configuration of a task's head: one affine layer, as in §5, optionally after a convolution."""

    channels: int
    """Output channels."""
    hidden: int = 0
    """Filters of a 3×3 layer before the affine one; 0 for none."""
    whole: bool = False
    """A prediction for the whole image: the head pools the encoder's features, as classifiers do."""

    def build(self, encoded: int, decoded: int) -> nn.Module:
        """The layers, given the channels of encoder and decoder."""
        if self.whole:
            return nn.Linear(encoded, self.channels)
        if not self.hidden:
            return nn.Conv2d(decoded, self.channels, 1)
        return rectified(decoded, self.hidden).append(nn.Conv2d(self.hidden, self.channels, 1))


class Dense(nn.Module, ABC):
    """An image → per task a map of a quarter of its size; all is shared but the heads (§5).

    Args:
        heads: By the tasks' names.
        encoded: Channels of the encoder's output.
        decoded: Channels of the decoder's output.

    Raises:
        ValueError: No task.

    Attributes:
        last_shared: The last layer that all tasks share, the paper's `W`.
    """

    encoder: nn.ModuleList | nn.Sequential
    decoder: nn.ModuleList | nn.Sequential

    def __init__(self, heads: Mapping[str, Head], encoded: int, decoded: int) -> None:
        super().__init__()
        if not heads:
            raise ValueError("heads names no task: give one Head for each")
        self.heads = nn.ModuleDict({task: head.build(encoded, decoded) for task, head in heads.items()})
        self._whole = {task for task, head in heads.items() if head.whole}

    @property
    def last_shared(self) -> nn.Conv2d:
        """The decoder's, or the encoder's where a head reads that."""
        *_, last = (m for m in (self.encoder if self._whole else self.decoder).modules() if isinstance(m, nn.Conv2d))
        return last

    @abstractmethod
    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] → [B, encoded, H/32, W/32], and, if there are maps, [B, decoded, H/4, W/4]."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] → each task's [B, channels, H/4, W/4], or [B, channels] where it is about the whole image.

        Raises:
            ValueError: H or W is not a multiple of `STRIDE`.
        """
        height, width = image.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(
                f"image is {height}×{width}, but {type(self).__name__} halves it until one pixel stands for "
                f"{STRIDE}: scale or crop height and width to multiples of {STRIDE}"
            )
        encoded, decoded = self.features(image)
        pooled = encoded.mean(dim=(2, 3))
        return {task: head(pooled if task in self._whole else decoded) for task, head in self.heads.items()}


def scaled(filters: int, width: float) -> int:
    """The number of filters of a layer in a network of this width.

    Raises:
        ValueError: `width` is not above 0.
    """
    if not width > 0:
        raise ValueError(f"width is {width}: give a factor above 0, 1 for the paper's network")
    return max(1, round(filters * width))


def normed(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Size-preserving convolution, batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def rectified(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Size-preserving convolution, batch norm, ReLU."""
    return normed(inputs, outputs, kernel, stride).append(nn.ReLU(inplace=True))
