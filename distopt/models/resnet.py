"""ResNet-50, with the names that torchvision gives its parameters, so that checkpoints interchange."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn


class ResNet50(nn.Module):
    """Classifies pictures of three channels; the stride of a block is in its 3 × 3 convolution ("v1.5").

    Args:
        layers: Number of blocks at each of the four resolutions.
        width: Channels after the first convolution; each further resolution has twice as many.
        classes: Number of scores.
    """

    def __init__(self, layers: Sequence[int] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(*_blocks(width, width, layers[0], stride=1))
        self.layer2 = nn.Sequential(*_blocks(4 * width, 2 * width, layers[1], stride=2))
        self.layer3 = nn.Sequential(*_blocks(8 * width, 4 * width, layers[2], stride=2))
        self.layer4 = nn.Sequential(*_blocks(16 * width, 8 * width, layers[3], stride=2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32 * width, classes)
        self.init_weights()

    def forward(self, images: Tensor) -> Tensor:
        """The scores of each class, before a softmax.

        Args:
            images: (batch, 3, height, width), both at least 32.

        Returns:
            (batch, classes)
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: Tensor = self.fc(self.avgpool(x).flatten(1))
        return scores

    def init_weights(self) -> None:
        """Of convolutions and of the norms that end a block; the others keep torch's."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)  # each block starts as the identity


class Bottleneck(nn.Module):
    """Narrow, filter, widen; added to what came in, which `downsample` brings to the same shape."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != 4 * width:
            shortcut = nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        out: Tensor = self.relu(branch + (x if self.downsample is None else self.downsample(x)))
        return out


def _blocks(channels: int, width: int, count: int, stride: int) -> Iterator[Bottleneck]:
    """The blocks of one resolution; the first one changes it."""
    yield Bottleneck(channels, width, stride)
    for _ in range(count - 1):
        yield Bottleneck(4 * width, width, stride=1)
