"""How far this rank has come, and where its main thread is: what a hang is found and told by."""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)
_STANDARD = ("<", sysconfig.get_path("stdlib"))
_PACKAGES = sysconfig.get_path("purelib")  # below the standard library, and no part of it
_MEETING = tuple(f"{_TORCH}/{part}/" for part in ("distributed", "autograd", "nn/parallel"))
"""Where torch waits for other ranks; the backward, in which DDP does, leads through autograd."""


class Mark(NamedTuple):
    """A point that the loop has come to."""

    number: int
    """Of marks so far: the same on all ranks that are at the same point."""
    step: int
    """Which is being taken, or was the last to be."""
    phase: str

    @property
    def may_be_slow(self) -> bool:
        """Whether this may take far longer than a step: loading, compiling, a checkpoint, a trace."""
        return self.number <= 1 or self.phase in ("checkpoint", "trace", "end")

    def __str__(self) -> str:
        return f"step {self.step}" + (f", {self.phase}" if self.phase != "step" else "")


class Progress:
    """What the loop says of itself; read by another thread."""

    def __init__(self) -> None:
        self.at = Mark(0, 0, "start")

    def mark(self, step: int, phase: str) -> None:
        """Says what begins now; costs a microsecond."""
        self.at = Mark(self.at.number + 1, step, phase)

    def marking(self, call: Callable[[], T], step: int, phase: str) -> Callable[[], T]:
        """A function that marks this, and then calls another."""

        def marked() -> T:
            self.mark(step, phase)
            return call()

        return marked


class Place(NamedTuple):
    """Where the main thread is."""

    where: str
    """`net.py:12 (forward)`: the innermost place outside of torch and the standard library."""
    waits: bool
    """Whether it seems to wait for other ranks."""
    is_ours: bool = False
    """Whether that place is in distopt."""


def main_thread() -> Place:
    """Where the main thread is in Python; in what C++ it is does not show."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    waits = False
    while frame is not None and (_is_standard(frame) or _file(frame).startswith(_TORCH)):
        waits |= _file(frame).startswith(_MEETING)
        outermost, frame = frame, frame.f_back
    if frame is None:
        return Place(_name(outermost), waits)
    file = _file(frame)
    is_ours = file.startswith(_OWN) and not file.startswith((f"{_OWN}/data/", f"{_OWN}/models/"))
    return Place(_name(frame), waits or is_ours, is_ours)


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def _is_standard(frame: FrameType) -> bool:
    return _file(frame).startswith(_STANDARD) and not _file(frame).startswith(_PACKAGES)


def _name(frame: FrameType) -> str:
    return f"{_file(frame)}:{frame.f_lineno} ({frame.f_code.co_name})"
