"""Checkpoints: written by torch.distributed.checkpoint, committed by a rename, found again."""

from distopt.checkpoint.directory import Progress, newest, prune, read_progress, step_directory
from distopt.checkpoint.resume import Start, find_start
from distopt.checkpoint.state import load, save

__all__ = [
    "Progress",
    "Start",
    "find_start",
    "load",
    "newest",
    "prune",
    "read_progress",
    "save",
    "step_directory",
]
