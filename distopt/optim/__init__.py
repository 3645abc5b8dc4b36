"""Paramwise optimizer groups: decided on the unwrapped model, bound to the live one.

census (what the model has) → rules (a verdict each) → plan (named groups) → bind (live parameters).
"""

from distopt.optim.agreement import check_agreement
from distopt.optim.build import Configured, build_optimizer, make_plan
from distopt.optim.census import Census, Entry, Place
from distopt.optim.changes import Difference, compare
from distopt.optim.layers import LearningRateDecayOptimWrapperConstructor
from distopt.optim.local_shards import steps_plain_tensors
from distopt.optim.modes import evaluating, set_mode
from distopt.optim.plan import Plan
from distopt.optim.prebuilt import Prebuilt
from distopt.optim.rules import DefaultOptimWrapperConstructor
from distopt.optim.trial import try_optimizer
from distopt.optim.verdict import Constructor, Verdict

__all__ = [
    "Census",
    "Configured",
    "Constructor",
    "DefaultOptimWrapperConstructor",
    "Difference",
    "Entry",
    "LearningRateDecayOptimWrapperConstructor",
    "Place",
    "Plan",
    "Prebuilt",
    "Verdict",
    "build_optimizer",
    "check_agreement",
    "compare",
    "evaluating",
    "make_plan",
    "set_mode",
    "steps_plain_tensors",
    "try_optimizer",
]
