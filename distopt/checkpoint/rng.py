"""The random states of one process, as named tensors."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, torch.Tensor]:
    """Of torch, Python and NumPy; of the current CUDA device where the process uses one."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "cpu": torch.get_rng_state(),
        "python": _encode(random.getstate()),
        "numpy": _encode([kind, np.asarray(keys).tolist(), *rest]),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: Mapping[str, torch.Tensor]) -> None:
    """Sets those of the states that are there, as `capture` gave them."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "python" in state:
        version, internal, gauss_next = _decode(state["python"])
        random.setstate((version, tuple(internal), gauss_next))
    if "numpy" in state:
        np.random.set_state(tuple(_decode(state["numpy"])))
    if "cuda" in state and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(state["cuda"])


def _encode(value: Any) -> torch.Tensor:
    """As text rather than pickled: what is read back is data, whoever wrote it."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(text: torch.Tensor) -> Any:
    return json.loads(bytes(text.tolist()))
