"""Small models and datasets that tests name in configs, by `tests.components:Name`."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset


class Windows(Dataset):
    """Random but learnable bytes: each is the one before plus 1 or 2. Item: (context + 1,) of int64."""

    def __init__(self, length: int = 64, context: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randint(1, 3, (length, context + 1), generator=generator)
        self.windows = steps.cumsum(1) % 32
        self.tokens_per_sample = context

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.windows[index]


class Normed(nn.Module):
    """Has running statistics; its second norm is frozen in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(9)
        self.frozen = nn.BatchNorm1d(9).eval()
        self.head = nn.Linear(9, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.norm(windows.float()))).square().mean()


class Diverging(nn.Module):
    """Its loss is no number from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.weight.sum() * (float("nan") if self.calls > 2 else 1.0)


class NoLoss(nn.Module):
    """Forgets to return a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * self.weight


class Failing(nn.Module):
    """Raises at its second forward, as a user's bug would."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 2:
            raise ZeroDivisionError("a bug in the user's model")
        return self.weight.sum()
