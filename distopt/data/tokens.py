"""A long text as a file of token ids, read in windows."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distopt.errors import ConfigError


class TokenFile(Dataset[Tensor]):
    """Windows of a one-dimensional `.npy` file of integers; what does not fill the last is left out.

    Item i is an int64 tensor of shape (context,).

    Args:
        path: The file; it is mapped into memory, so it may be larger than that.
        context: Tokens per window.

    Raises:
        ConfigError: There is no such file, it holds something else, or fewer tokens than one window.
    """

    def __init__(self, path: str, context: int = 1024) -> None:
        try:
            tokens = _open(path)
        except (OSError, ValueError) as error:  # numpy: it is no .npy file, or one of Python objects
            raise ConfigError("path", f"cannot be read as a .npy file: {error}", given=path) from error
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            given = f"{path}: {tokens.dtype} of shape {tokens.shape}"
            raise ConfigError("path", "holds no tokens", given=given, allowed="integers, in one dimension")
        if len(tokens) < context:
            problem, allowed = "longer than the whole text", f"at most {len(tokens)}"
            raise ConfigError("context", problem, given=context, allowed=allowed)
        self.path = path
        self.tokens_per_sample = context
        self._length = len(tokens) // context

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        start = index * self.tokens_per_sample
        window = _open(self.path)[start : start + self.tokens_per_sample]
        return torch.from_numpy(window.astype(np.int64))


@cache  # once a process: sent to a worker, an open file would become all of its content
def _open(path: str) -> npt.NDArray[np.integer]:
    tokens: npt.NDArray[np.integer] = np.load(path, mmap_mode="r")
    return tokens
