"""Slurm: one job of several nodes, on each of which srun starts a torchrun."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from distopt.errors import ConfigError, raise_all
from distopt.launch.bash import script
from distopt.launch.job import Job

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


def slurm(job: Job, arguments: Sequence[str]) -> str:
    """A batch script: what is asked of Slurm, and the body that starts, requeues and stops.

    Raises:
        ConfigError: A fact that sbatch would not take.
    """
    raise_all(_mistakes(job))
    facts = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus or None,
        "cpus-per-task": job.cpus,
        "mem": job.memory,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "signal": f"USR1@{job.grace}",
        "output": "%x-%j.log",
        "open-mode": "append",
    }
    head = [f"#SBATCH --{name}={shlex.quote(str(fact))}" for name, fact in facts.items() if fact is not None]
    head.append(f"#SBATCH --{'requeue' if job.requeues else 'no-requeue'}")
    variables = {
        **job.env,
        "RANKS": str(job.ranks_per_node),
        "REQUEUES": str(job.requeues),
        "PET_SHUTDOWN_TIMEOUT": str(job.grace),
    }
    if not job.gpus:  # nor are those to be used that Slurm does not hide
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if job.image:
        variables["CONTAINER"] = _container(job)
    return script("slurm.sh", arguments, variables, job.setup, head)


def _container(job: Job) -> str:
    """The command that another one follows; in words, split at blanks."""
    binds = [f"--bind={mount}" for mount in job.mounts]
    return " ".join(["apptainer", "exec", *(["--nv"] if job.gpus else []), *binds, str(job.image)])


def _mistakes(job: Job) -> Iterator[ConfigError]:
    if job.time is not None:
        seconds = _seconds(job.time)
        if seconds is None:
            allowed = "minutes, 4:00:00, 2-00:00:00"
            yield ConfigError("time", "no time limit of Slurm's", given=job.time, allowed=allowed)
        elif 0 < seconds <= job.grace:  # 0: no limit
            problem = f"the signal to save, {job.grace} s before the end, would come at the start"
            yield ConfigError("time", problem, given=job.time, allowed="more than grace")
    for name in ("name", "partition", "account", "image"):
        fact = getattr(job, name)
        if fact is not None and re.search(r"\s", fact):
            yield ConfigError(name, "has a blank", given=fact)
    if "/" in job.name:
        yield ConfigError("name", "has a slash, and is part of the log's name", given=job.name)
    for mount in job.mounts:
        if not re.fullmatch(r"[^\s:]+:[^\s:]+", mount):
            yield ConfigError("mounts", "not of the form", given=mount, allowed="SOURCE:TARGET")


def _seconds(time: str) -> int | None:
    """A time limit as sbatch reads it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    found = _TIME.fullmatch(time)
    if not found:
        return None
    first, second, third = (int(found[name] or 0) for name in ("first", "second", "third"))
    if found["days"]:
        return 86400 * int(found["days"]) + 3600 * first + 60 * second + third
    return 3600 * first + 60 * second + third if found["third"] else 60 * first + second
