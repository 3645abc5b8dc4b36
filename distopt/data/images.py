"""Pictures in one folder a class, cropped as is usual for ImageNet."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distopt.errors import ConfigError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # of ImageNet's red, green and blue
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
EVAL_SHARE = 224 / 256  # of the shorter side, that the centre crop keeps

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the picture."""


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """The pictures `root/<class>/<name>.jpg`, also .jpeg, .png and .webp; the classes are numbered by name.

    Item i is (image, label): float32 of shape (3, size, size), of mean 0 and variance 1 over ImageNet.

    Args:
        root: The folder of the classes' folders.
        train: Cut out 8–100 % of the area at random, and mirror every other picture; else take the centre.
        size: Of a side of the result, in pixels.

    Raises:
        ConfigError: There is no such folder, it has no folders, or these hold no pictures.
    """

    def __init__(self, root: str, train: bool = True, size: int = 224) -> None:
        if not Path(root).is_dir():
            raise ConfigError("root", "there is no such folder", given=root)
        self.classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        self.files = [
            (f"{name}/{file}", label)
            for label, name in enumerate(self.classes)
            for file in sorted(entry.name for entry in os.scandir(f"{root}/{name}"))
            if file.lower().endswith(ENDINGS)
        ]
        if not self.files:
            found = f"no pictures in its {len(self.classes)} folders" if self.classes else "no folders in it"
            allowed = f"one folder a class, each with files in {', '.join(ENDINGS)}"
            raise ConfigError("root", found, given=root, allowed=allowed)
        self.root = root
        self.train = train
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        file, label = self.files[index]
        try:
            with Image.open(Path(self.root, file)) as opened:
                picture = opened.convert("RGB")
        except OSError as error:  # Pillow does not name a file that is cut short
            raise OSError(f"{file}: {error}") from error
        box = _random_box(*picture.size) if self.train else _centre_box(*picture.size, EVAL_SHARE)
        picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        if self.train and _uniform(0, 1) < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return (pixels / 255 - MEAN) / STD, label


def _random_box(width: int, height: int) -> Box:
    """8–100 % of the area, 3:4 to 4:3, anywhere; ten tries, since a wide one may not fit a narrow picture."""
    for _ in range(10):
        area = width * height * _uniform(0.08, 1)
        ratio = math.exp(_uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if across <= width and down <= height:
            left, top = _uniform(0, width - across), _uniform(0, height - down)
            return left, top, left + across, top + down
    return _centre_box(width, height, 1)


def _centre_box(width: int, height: int, share: float) -> Box:
    """The square in the middle that has this share of the shorter side."""
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _uniform(low: float, high: float) -> float:
    """By torch's generator, which the run seeds in every worker."""
    return low + (high - low) * torch.rand(()).item()
