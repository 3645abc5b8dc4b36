"""What a step's time goes to."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Times the parts of one step: by the clock or, on a GPU, by events, for which the host does not wait.

    Args:
        device: This rank's own.
        part: What begins now.
    """

    def __init__(self, device: torch.device, part: str) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self.mark(part)

    def mark(self, part: str) -> None:
        """Says what begins now; a part may come more than once."""
        now: Any = time.perf_counter()
        if self._on_gpu:
            now = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record()
        self._marks.append((part, now))

    def seconds(self) -> dict[str, float]:
        """Part → its time, up to the last mark, of which the device is waited for."""
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        parts: dict[str, float] = {}
        for (part, began), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            taken = began.elapsed_time(ended) / 1000 if self._on_gpu else ended - began
            parts[part] = parts.get(part, 0.0) + taken
        return parts
