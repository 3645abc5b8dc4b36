"""Datasets that ship with distopt, the resumable sampler and the loaders built on it."""

from distopt.data.loader import EvalLoader, TrainLoader
from distopt.data.sampler import GlobalBatchSampler
from distopt.data.text import StdlibText

__all__ = ["EvalLoader", "GlobalBatchSampler", "StdlibText", "TrainLoader"]
