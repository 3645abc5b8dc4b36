"""Real text that is on every machine: the source of the running interpreter's standard library."""

from __future__ import annotations

import os
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distopt.errors import ConfigError, nearest

SPLITS = ("train", "val")
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}
VAL_SHARE = 12  # one file in twelve


class StdlibText(Dataset[Tensor]):
    """Windows of bytes from the standard library's `*.py` files, split by file into train and val.

    Item i is a uint8 tensor of shape (context + 1,): `context` inputs, and the same shifted by one as
    targets. Neighbours overlap by one byte, so that every byte is predicted once.

    Args:
        split: "train", or "val" for about a twelfth of the files.
        context: Inputs per window, in bytes.
        limit: Take only this many windows, spread evenly over the split.

    Raises:
        ConfigError: An unknown split, or an interpreter that comes without its library's source.
    """

    def __init__(self, split: str = "train", context: int = 64, limit: int | None = None) -> None:
        if split not in SPLITS:
            raise ConfigError(
                "split", "unknown split", given=split, allowed=SPLITS, suggestion=nearest(split, SPLITS)
            )
        self.tokens_per_sample = context
        windows = _windows(split, context)
        if limit is not None and limit < len(windows):
            windows = windows[torch.arange(limit) * len(windows) // limit]
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        return self.windows[index]

    def baselines(self) -> dict[str, float]:
        """Losses to compare a model's with, in nats per byte, on the very bytes this dataset asks for.

        Returns:
            `bigram`: each byte predicted from the one before, by add-one smoothed counts of the train split.
        """
        train = _pair_counts(_windows("train", self.tokens_per_sample)) + 1
        log_probability = (train / train.sum(dim=1, keepdim=True)).log()
        here = _pair_counts(self.windows)
        return {"bigram": -((here * log_probability).sum() / here.sum()).item()}


def _windows(split: str, context: int) -> Tensor:
    """A view of shape (windows, context + 1) of the split's text."""
    return _text(split).unfold(0, context + 1, context)


def _pair_counts(windows: Tensor) -> Tensor:
    """How often each byte follows each: (256, 256), the first byte's value along dimension 0."""
    counts = torch.zeros(256 * 256, dtype=torch.float64)
    for part in torch.split(windows, 16_384):  # pieces that stay in the cache: several times as fast
        pairs = part[:, :-1].int() * 256 + part[:, 1:]
        counts += torch.bincount(pairs.flatten(), minlength=256 * 256)
    return counts.view(256, 256)


@cache
def _text(split: str) -> Tensor:
    library = Path(sysconfig.get_paths()["stdlib"])
    text = bytearray()
    for name in sorted(_source_files(library)):
        is_val = zlib.crc32(name.encode()) % VAL_SHARE == 0
        if is_val == (split == "val"):
            with suppress(OSError):
                text += (library / name).read_bytes()
    if not text:
        raise ConfigError(
            "",
            "this Python comes without the source of its standard library",
            given=str(library),
            allowed="an interpreter with its *.py files, or another dataset",
        )
    return torch.frombuffer(text, dtype=torch.uint8)


def _source_files(library: Path) -> Iterator[str]:
    """Paths relative to the library, with forward slashes."""
    for folder, subfolders, files in os.walk(library):
        subfolders[:] = set(subfolders) - SKIPPED_FOLDERS
        for file in files:
            if file.endswith(".py"):
                yield (Path(folder) / file).relative_to(library).as_posix()
