"""A small convolutional network for small pictures: depthwise-separable blocks that return class scores."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Classifies pictures of one channel, of any size.

    Args:
        width: Channels of every layer.
        depth: Number of blocks; each sees one pixel further around.
        classes: Number of scores.
    """

    def __init__(self, width: int = 32, depth: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The scores of each class, before a softmax.

        Args:
            images: (batch, 1, height, width).

        Returns:
            (batch, classes)
        """
        x = self.norm(self.blocks(self.stem(images)))
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


class Block(nn.Module):
    """Each channel filtered by itself, then all channels of a pixel mixed; added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The norm takes out the mean, and with it any bias before it.
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Sequential(
            OrderedDict(
                up=nn.Conv2d(width, 2 * width, 1), relu=nn.ReLU(), down=nn.Conv2d(2 * width, width, 1)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mix(self.norm(self.depthwise(x)))
        return out
