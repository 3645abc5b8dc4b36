"""Handwritten digits that need no download: the 1,797 that come with scikit-learn."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distopt.errors import ConfigError, nearest

SPLITS = ("train", "val")
VAL_SHARE = 5  # one digit in five


class Digits(Dataset[tuple[Tensor, Tensor]]):
    """Pictures of 8 × 8 pixels: 1,437 to train on and 360 to evaluate on, every class in both alike.

    Item i is (image, label): float32 of shape (1, 8, 8) from 0, paper, to 1, ink, and the digit as int64.

    Args:
        split: "train" or "val".

    Raises:
        ConfigError: An unknown split, or scikit-learn is not installed.
    """

    def __init__(self, split: str = "train") -> None:
        if split not in SPLITS:
            raise ConfigError(
                "split", "unknown split", given=split, allowed=SPLITS, suggestion=nearest(split, SPLITS)
            )
        try:
            digits = import_module("sklearn.datasets").load_digits()
        except ModuleNotFoundError:
            problem, allowed = "needs scikit-learn, which is not installed", "pip install 'distopt[recipes]'"
            raise ConfigError("type", problem, given="Digits", allowed=allowed) from None
        labels = torch.from_numpy(digits.target)
        by_class = labels.argsort(stable=True)
        is_val = torch.arange(len(labels)) % VAL_SHARE == 0
        indices = by_class[is_val if split == "val" else ~is_val]
        self.images = torch.from_numpy(digits.images)[indices, None].float() / 16
        self.labels = labels[indices]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]
