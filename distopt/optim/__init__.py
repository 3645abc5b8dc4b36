"""Paramwise optimizer groups: decided on the unwrapped model, bound to the live one.

census (what the model has) → rules (a verdict each) → plan (named groups) → bind (live parameters).
"""

from distopt.optim.build import build_optimizer, make_plan, try_optimizer
from distopt.optim.plan import Plan

__all__ = ["Plan", "build_optimizer", "make_plan", "try_optimizer"]
