"""What a job's facts and the config of its run have to agree on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distopt.config import Config
from distopt.errors import ConfigError, collecting, raise_all
from distopt.launch.job import Job
from distopt.monitor.status import read_status

NODE_LOCAL = (
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    "/run",
    "/local",
    "/localscratch",
    "/lscratch",
    "/scratch/local",
)
"""Where each node has a disk or memory of its own, as clusters go."""


def check_run(job: Job, config: Config) -> None:
    """Checks that nodes share the run directory, and that a stop fits the grace period.

    Raises:
        ConfigError: All that is wrong, with the `file:line` of each that is the config's.
    """
    errors = [*_not_shared(job, config), *_too_slow(job, config)]
    with collecting(errors):
        check_resume(config)
    raise_all(located(error, job, config) for error in errors)


def located(error: ConfigError, job: Job, config: Config) -> ConfigError:
    """Itself, with the place of its key: among the facts, or in the config."""
    return error.located(job.locate if error.key.split(".")[0] in Job.model_fields else config.locate)


def check_resume(config: Config) -> None:
    """Raises ConfigError where a job that is requeued would be refused."""
    if config.resume == "never":
        problem, allowed = "a job that is requeued has to continue", "auto, or a checkpoint"
        raise ConfigError("resume", problem, given="never", allowed=allowed, where=config.locate("resume"))


def _not_shared(job: Job, config: Config) -> Iterator[ConfigError]:
    work_dir = config.work_dir.resolve()
    for disk in NODE_LOCAL if job.nodes > 1 else ():
        if work_dir.is_relative_to(Path(disk).resolve()):
            problem = f"is below {disk}, of which each of the {job.nodes} nodes has its own"
            allowed = "a directory on a file system that all nodes share"
            yield ConfigError("work_dir", problem, given=str(config.work_dir), allowed=allowed)
            return


def _too_slow(job: Job, config: Config) -> Iterator[ConfigError]:
    seconds = float((read_status(config.work_dir / "status.json") or {}).get("save_seconds") or 0)
    if 2 * seconds > job.grace:
        problem = f"is short: the last checkpoint took {seconds:.0f} s to be written"
        yield ConfigError("grace", problem, given=job.grace, allowed=f"at least {2 * seconds:.0f}")
    if config.hang_timeout and 60 * config.hang_timeout > job.grace:
        problem = f"is longer than the grace period of {job.grace} s: the job ends before a hang is found"
        allowed = f"at most {job.grace / 60:g}, or --grace {60 * config.hang_timeout:.0f}"
        yield ConfigError("hang_timeout", problem, given=config.hang_timeout, allowed=allowed)
