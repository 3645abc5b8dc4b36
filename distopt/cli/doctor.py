"""`distopt doctor`: looks at the nodes that a job would run on, and points at the odd one out."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distopt.cli.exit import report
from distopt.errors import ConfigError
from distopt.faults import end_with_parent

if TYPE_CHECKING:
    from distopt.launch.doctor.meeting import Meeting

DESCRIPTION = """\
Looks at the nodes that a job would run on, from each rank, and points at the odd one out: versions, GPUs,
addresses, all-reduce, clocks, work_dir, limits. Start it as the job is started."""
EPILOG = """\
examples
  torchrun --nnodes=2 --nproc_per_node=8 … -m distopt doctor cfg.yaml
  torchrun --standalone --nproc_per_node=8 -m distopt doctor --work-dir /shared/runs
  distopt doctor

exit status
  0  nothing is odd
  1  something is: a line each, the most important first
  2  the input is wrong: one message says where, what was given and what is allowed
"""
ODD = 1


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        "distopt doctor",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", metavar="cfg.yaml", nargs="?", help="whose work_dir and num_workers to look at"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="set a key of the config"
    )
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="a directory that all ranks are to share"
    )
    parser.add_argument(
        "--timeout", type=float, default=60, metavar="S", help="seconds to wait for a rank (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="print all facts of every rank as JSON")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    args = parser.parse_intermixed_args(argv)

    from distopt.config import load_config

    work_dir, workers = args.work_dir, 0
    try:
        if args.timeout <= 0:
            raise ConfigError("", "--timeout is a number of seconds above 0", given=args.timeout)
        if args.config:
            config = load_config(args.config, args.overrides)
            work_dir, workers = work_dir or config.work_dir, config.data.num_workers
    except ConfigError as error:
        return report(error)

    from distopt.launch.doctor.meeting import Meeting

    try:
        meeting = Meeting.open(args.timeout)
    except RuntimeError as error:  # every store's errors are
        rank, node, port = (os.environ.get(name) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
        sys.stderr.write(
            f"rank {rank} does not meet rank 0 at {node}:{port} within {args.timeout:g} s: {error}\n"
        )
        return ODD
    try:
        status = _examine(meeting, work_dir, workers, as_json=args.json)
    except RuntimeError as error:
        sys.stderr.write(f"rank {meeting.rank}: {error}\n")
        status = ODD
    sys.stderr.flush()
    if meeting.size > 1:
        os._exit(status)  # threads may be waiting still, for ranks that will not come
    return status


def _examine(meeting: Meeting, work_dir: Path | None, workers: int, *, as_json: bool) -> int:
    from distopt.launch.doctor.compare import findings
    from distopt.launch.doctor.examine import examine
    from distopt.launch.doctor.finding import Weight
    from distopt.launch.doctor.places import Places
    from distopt.launch.doctor.report import to_json, write

    examination = examine(meeting, work_dir)
    if examination is None:
        status: int = meeting.hear("status", [0], patience=2 * meeting.timeout).get(0, ODD)
        meeting.tell("left", True)
        return status
    places = Places(examination.everyone)
    found = findings(examination, places, workers)
    status = ODD if any(finding.weight < Weight.NOTE for finding in found) else 0
    try:
        if as_json:
            sys.stdout.write(to_json(examination, found))
        else:
            write(examination, places, found)
        sys.stdout.flush()
    finally:  # not before: the first rank to leave with 1 has torchrun end the others
        meeting.close()
        meeting.tell("status", status)
    others = [facts.rank for facts in examination.everyone if facts.rank != 0]
    meeting.hear("left", others)  # the store may be this process's
    return status
