"""What else happens during a run: the hooks, and what ships with distopt that uses them."""

from distopt.callbacks.base import Callback, Run
from distopt.callbacks.best import BestValues, check_comparable
from distopt.callbacks.early_stop import EarlyStop
from distopt.callbacks.hooks import Callbacks

__all__ = ["BestValues", "Callback", "Callbacks", "EarlyStop", "Run", "check_comparable"]
