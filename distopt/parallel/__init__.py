"""Wrapping: one model on one or many processes."""

from distopt.parallel.batchnorm import sync_batchnorm
from distopt.parallel.buffers import average_buffers
from distopt.parallel.units import find_units
from distopt.parallel.wrap import gradient_sync, wrap

__all__ = ["average_buffers", "find_units", "gradient_sync", "sync_batchnorm", "wrap"]
