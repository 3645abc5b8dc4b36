"""Wrapping: one model on one or many processes."""

from distopt.parallel.batchnorm import sync_batchnorm
from distopt.parallel.buffers import (
    MovingStatistics,
    average_buffers,
    average_over_ranks,
    preserved_buffers,
    running_statistics,
)
from distopt.parallel.compilation import compiling
from distopt.parallel.fully_shard import check_same_used
from distopt.parallel.materialize import materialize
from distopt.parallel.precision import Precision, autocast, set_matmul_precision
from distopt.parallel.replicate import check_all_used, check_exchanged
from distopt.parallel.units import find_units
from distopt.parallel.wrap import gradient_sync, release, reshard, try_wrap, wrap

__all__ = [
    "MovingStatistics",
    "Precision",
    "autocast",
    "average_buffers",
    "average_over_ranks",
    "check_all_used",
    "check_exchanged",
    "check_same_used",
    "compiling",
    "find_units",
    "gradient_sync",
    "materialize",
    "preserved_buffers",
    "release",
    "reshard",
    "running_statistics",
    "set_matmul_precision",
    "sync_batchnorm",
    "try_wrap",
    "wrap",
]
