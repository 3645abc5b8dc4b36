"""The config's model, for looking at its names and shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from distopt import parts
from distopt.config import Config
from distopt.errors import ConfigError


def model_without_memory(config: Config) -> nn.Module:
    """Builds the model on the meta device or, where its constructor reads its tensors' values, on the CPU.

    Raises:
        ConfigError: As `parts.model`.
    """
    try:
        with torch.device("meta"), _NothingToFill():
            return parts.model(config)
    except ConfigError as error:
        if error.__cause__ is None:
            raise
    return parts.model(config)


class _NothingToFill(TorchFunctionMode):
    """Passes over normal initial values of tensors without memory: torch takes milliseconds for each."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.normal_, init.normal_):
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))
