"""Wrapping: one model on one or many processes."""

from distopt.parallel.units import find_units
from distopt.parallel.wrap import gradient_sync, wrap

__all__ = ["find_units", "gradient_sync", "wrap"]
