"""Facts of a job → scripts and manifests; what a node has to have. Knows no torch."""

from distopt.launch.job import Job, read_job
from distopt.launch.script import SCRIPTS, render

__all__ = ["SCRIPTS", "Job", "read_job", "render"]
