"""What both families have in common: features that tasks share, and one affine head a task upon them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from torch import Tensor, nn


class Dense(nn.Module, ABC):
    """An image → a map of a quarter of its size for each task; all shared up to the last layer (§5).

    Tasks about the whole image read what the encoder gives, as classifiers do; the decoder is for maps alone.

    Args:
        channels: The tasks' names, and how many channels each one's output has.
        whole: Those of the tasks that are about the whole image.
        encoded: Channels of what the encoder gives.
        decoded: Channels of what the decoder gives.
        stride: Height and width of the images must be multiples of this.

    Raises:
        ValueError: No task.

    Attributes:
        last_shared: The last layer that all tasks share, the paper's `W`.
    """

    encoder: nn.ModuleList | nn.Sequential
    decoder: nn.ModuleList | nn.Sequential

    def __init__(
        self, channels: Mapping[str, int], whole: Collection[str], encoded: int, decoded: int, stride: int
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels names no task: give one number of channels for each")
        heads = {
            task: nn.Linear(encoded, n) if task in whole else nn.Conv2d(decoded, n, 1) for task, n in channels.items()
        }
        self.heads = nn.ModuleDict(heads)
        self.whole = frozenset(whole) & channels.keys()
        self.has_maps = len(self.whole) < len(channels)
        self._stride = stride

    @property
    def last_shared(self) -> nn.Conv2d:
        """Of the encoder, where a task leaves there."""
        *_, last = (m for m in (self.encoder if self.whole else self.decoder).modules() if isinstance(m, nn.Conv2d))
        return last

    @abstractmethod
    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] → [B, encoded, H/32, W/32], and, if there are maps, [B, decoded, H/4, W/4]."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] → each task's [B, channels, H/4, W/4], or [B, channels] where it is about the whole image.

        Raises:
            ValueError: H or W is not a multiple of the stride.
        """
        height, width = image.shape[-2:]
        if height % self._stride or width % self._stride:
            raise ValueError(
                f"image is {height}×{width}, but {type(self).__name__} halves it until one pixel stands for "
                f"{self._stride}: scale or crop height and width to multiples of {self._stride}"
            )
        encoded, decoded = self.features(image)
        pooled = encoded.mean(dim=(2, 3))
        return {task: head(pooled if task in self.whole else decoded) for task, head in self.heads.items()}


def scaled(filters: int, width: float) -> int:
    """How many filters a layer has in a network of this width.

    Raises:
        ValueError: `width` is not above 0.
    """
    if not width > 0:
        raise ValueError(f"width is {width}: give a factor above 0, 1 for the paper's network")
    return max(1, round(filters * width))


def normed(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution of the same size, batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def rectified(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution of the same size, batch norm, ReLU."""
    return normed(inputs, outputs, kernel, stride).append(nn.ReLU(inplace=True))
