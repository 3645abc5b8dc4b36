"""Parameter schedules: every value a pure function of the step."""

from distopt.schedule.build import build_schedule, check_schedule, check_types
from distopt.schedule.overview import overview
from distopt.schedule.schedule import Schedule

__all__ = ["Schedule", "build_schedule", "check_schedule", "check_types", "overview"]
