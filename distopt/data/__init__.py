"""Datasets that ship with distopt, and the loaders: resumable, the same samples in any world."""

from distopt.data.collate import causal_lm
from distopt.data.digits import Digits
from distopt.data.images import ImageFolder
from distopt.data.labelled_text import LabelledText
from distopt.data.loader import EvalLoader, MicroBatch, Step, TrainLoader, length
from distopt.data.sampler import GlobalBatchSampler
from distopt.data.stream import is_stream
from distopt.data.text import StdlibText
from distopt.data.tokens import TokenFile

__all__ = [
    "Digits",
    "EvalLoader",
    "GlobalBatchSampler",
    "ImageFolder",
    "LabelledText",
    "MicroBatch",
    "StdlibText",
    "Step",
    "TokenFile",
    "TrainLoader",
    "causal_lm",
    "is_stream",
    "length",
]
