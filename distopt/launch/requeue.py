"""Whether a job is to start once more: not when it is done, nor when it gets no further.

    python -m distopt.launch.requeue before LAUNCH REQUEUES cfg.yaml [key=value …]
    python -m distopt.launch.requeue after LAUNCH REQUEUES cfg.yaml [key=value …]

A batch script asks before and after each start, and gets `start`, `requeue`, `done` or `stop`, and the run
directory; why it is to stop is on stderr. It says `preempted` for `after` where the scheduler has ended the
start. LAUNCH is JOB.N at the N-th restart of a job, and the rendezvous id of torchrun. The starts of the job
are on record in the run directory, since a scheduler requeues by itself too, and the script is killed with
its node.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from distopt.checkpoint.resume import find_start
from distopt.config import Config, load_config
from distopt.errors import LOST, SILENT, ConfigError
from distopt.files import replace_text
from distopt.launch.checks import check_resume
from distopt.monitor.status import read_status

Verdict = Literal["start", "requeue", "done", "stop"]
End = Literal["done", "preempted", "failed", "lost"]
"""`lost` is what ended without a word, as with a node: it is not the training's fault, or not for sure."""

_RECORD = "starts.json"


@dataclass(frozen=True)
class Start:
    """One start of a job."""

    launch: str
    """JOB.N"""
    step: int
    """Optimizer steps done when it began: those of the checkpoint it continues from."""
    end: End | None = None
    """None while it runs, or where the script was killed with it."""


def reason_to_stop(starts: Sequence[Start], step: int, requeues: int) -> str | None:
    """Why a job that has ended is not to start again, in a clause; None where it is to.

    Starts that fail have to come to a new checkpoint. One that was lost is forgiven, two in a row are not.
    Those that were preempted count for the limit alone.

    Args:
        starts: All of the job; their ends are known.
        step: Optimizer steps of the newest checkpoint.
        requeues: The limit.
    """
    if len(starts) > requeues:
        return f"it has been requeued {len(starts) - 1} times, which is the limit"
    vain = 0
    for start in reversed(starts):
        if start.step < step:
            break
        vain += start.end != "preempted"
    if vain > 1 or (vain and starts[-1].end == "failed"):
        again = f"the last {vain} starts" if vain > 1 else "this start"
        return f"{again} came to no new checkpoint after step {step}"
    return None


def end_of(launch: str, status: dict[str, Any] | None) -> tuple[End, str]:
    """How a start that runs no more has ended, by status.json, and the reason in a line."""
    if status is None or status.get("launch") != launch:
        return "failed", "it ended before the training began"
    state, reason = status["state"], str(status.get("reason") or "")
    if state == "done" or state == "preempted":
        return state, reason
    is_lost = state == "running" or LOST in reason or SILENT in reason
    return "lost" if is_lost else "failed", reason or f"rank 0 {LOST}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser("python -m distopt.launch.requeue", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("moment", choices=["before", "after", "preempted"])
    parser.add_argument("launch")
    parser.add_argument("requeues", type=int)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_intermixed_args(argv)
    try:
        config = load_config(args.config, args.overrides)
        if args.moment == "before":
            verdict = before(config, args.launch, args.requeues)
        else:
            verdict = after(config, args.launch, args.requeues, preempted=args.moment == "preempted")
        print(verdict, config.work_dir)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n\n")
        return 2
    return 0


def before(config: Config, launch: str, requeues: int) -> Verdict:
    """Asked as a batch script begins; puts the start on record.

    Raises:
        ConfigError: The run could not be continued.
    """
    check_resume(config)
    found = find_start(config.work_dir, config.resume, config.to_dict())
    if found.finished:
        return "done"
    others, starts = _read(config.work_dir, launch)
    if launch.endswith(".0"):  # numbers of jobs come back
        starts = []
    if starts:
        end, reason = end_of(starts[-1].launch, read_status(config.work_dir / "status.json"))
        if starts[-1].end is None:  # the script was killed with it, as where a node is lost
            starts[-1] = replace(starts[-1], end="lost" if end == "failed" else end)
        if problem := reason_to_stop(starts, found.step, requeues):
            return _stop(config, others + starts, problem, reason)
    _write(config.work_dir, [*others, *starts, Start(launch, found.step)])
    return "start"


def after(config: Config, launch: str, requeues: int, *, preempted: bool = False) -> Verdict:
    """Asked when all ranks have ended; puts on record how, which says nothing where they were preempted."""
    end, reason = end_of(launch, read_status(config.work_dir / "status.json"))
    if preempted and end != "done":
        end = "preempted"
    others, starts = _read(config.work_dir, launch)
    starts = starts or [Start(launch, 0)]  # the record was deleted meanwhile
    starts[-1] = replace(starts[-1], end=end)
    if end != "done":
        step = find_start(config.work_dir, config.resume, config.to_dict()).step
        if problem := reason_to_stop(starts, step, requeues):
            return _stop(config, others + starts, problem, reason)
    _write(config.work_dir, others + starts)
    return "done" if end == "done" else "requeue"


def _stop(config: Config, starts: list[Start], problem: str, reason: str) -> Verdict:
    _write(config.work_dir, starts)
    sys.stderr.write(f"not requeued: {problem}\n  the last start: {reason}\n  logs: {config.work_dir}/logs\n")
    return "stop"


def _read(work_dir: Path, launch: str) -> tuple[list[Start], list[Start]]:
    """The starts on record: those of other jobs, and those of this one."""
    try:
        starts = [Start(**start) for start in json.loads((work_dir / _RECORD).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return [], []
    own = [start for start in starts if start.launch.rpartition(".")[0] == launch.rpartition(".")[0]]
    return [start for start in starts if start not in own], own


def _write(work_dir: Path, starts: Sequence[Start]) -> None:
    work_dir.mkdir(parents=True, exist_ok=True)
    replace_text(work_dir / _RECORD, json.dumps([asdict(start) for start in starts], indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
