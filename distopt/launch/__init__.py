"""Facts of a job → scripts and manifests; what a node has to have. Knows no torch."""

from distopt.launch.checks import check_run
from distopt.launch.job import Job, read_job
from distopt.launch.script import MANIFESTS, SCRIPTS, render, world_of

__all__ = ["MANIFESTS", "SCRIPTS", "Job", "check_run", "read_job", "render", "world_of"]
