"""`python -m distopt.launch.pod cfg.yaml`: a node on Kubernetes, which starts torchrun and says how to go on.

torchrun gets what it needs from PET_ variables. The policies of the manifests act on the status:

    0   the run is done
    1   it failed and came to no new checkpoint, so that it would fail again: the job is over
    2   the config is wrong: the job is over
    75  start again: stopped, or lost, or failed after a new checkpoint

The first node, which has rank 0, decides; the others end with 75, or with 0 when the run is done.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distopt.checkpoint.resume import find_start
from distopt.config import Config, load_config
from distopt.launch.requeue import Start, end_of, reason_to_stop
from distopt.monitor.status import read_status

DONE, STOP, AGAIN = 0, 1, 75
_HEAD_START = 30.0
"""Seconds for the first node to end before the others: a policy acts on the first end that it sees.

Its ranks wait 10 s for those that failed before them.
"""
_LAST_WORD = 60.0
"""Seconds in which rank 0, on another node, has written its last status."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser("python -m distopt.launch.pod", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("config")
    args = parser.parse_args(argv)
    world = int(os.environ["PET_NNODES"]) * int(os.environ["PET_NPROC_PER_NODE"])
    check = [sys.executable, "-m", "distopt", "check", args.config, f"--nproc={world}"]
    if status := subprocess.run(check, stdout=subprocess.DEVNULL, check=False).returncode:
        return status
    config = load_config(args.config)
    before = _found(config)
    if before.finished:
        print(f"{config.work_dir}: finished, nothing to do", flush=True)
        return DONE
    last = _status(config)
    stopping = threading.Event()
    ended = _torchrun(args.config, config.work_dir, stopping)
    stopped = stopping.is_set()
    if os.environ["PET_NODE_RANK"] == "0":
        return _verdict(ended, before.step, _found(config).step, _status(config), last, stopped=stopped)
    if ended == 0 and _is_done(config):
        return DONE
    deadline = time.monotonic() + _HEAD_START
    while not stopping.is_set() and time.monotonic() < deadline:
        time.sleep(0.2)
    return AGAIN


def _verdict(
    ended: int,
    before: int,
    after: int,
    status: dict[str, Any] | None,
    last: dict[str, Any] | None,
    *,
    stopped: bool = False,
) -> int:
    """What the first node ends with.

    Args:
        ended: torchrun's status.
        before: Optimizer steps of the newest checkpoint, before the start.
        after: And after it.
        status: What status.json says.
        last: What it said before.
        stopped: This pod was told to end.
    """
    own = status if status != last else None  # as it was: the ranks did not come to write it
    end, reason = end_of((own or {}).get("launch") or "", own)
    if end == "done" and ended == 0:
        return DONE
    if stopped and own is None:
        end = "preempted"
    start = Start("", before, "lost" if end == "done" else end)
    if problem := reason_to_stop([start], after, requeues=1):
        sys.stderr.write(f"not started again: {problem}\n  {reason}\n")
        return STOP
    sys.stderr.write(f"starts again from step {after}: {end}: {reason}\n")
    return AGAIN


def _torchrun(config: str, work_dir: Path, stopping: threading.Event) -> int:
    """Runs it until it ends, and passes a SIGTERM on to its ranks, which sets `stopping`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # workers of loaders share tensors by files
    # What NCCL was doing when it failed or timed out: one file a rank.
    recorder = {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": f"{work_dir}/logs/nccl_rank",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # of torchrun, too: it is meant for the ranks, which save
    command = [sys.executable, "-m", "torch.distributed.run", "-m", "distopt.train", config]
    # In a group of its own, which an init that signals whole groups does not reach.
    process = subprocess.Popen(command, env={**recorder, **os.environ}, process_group=0)
    started = False
    while True:
        try:
            return process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            ranks = _children(process.pid)
            started = started or bool(ranks)
        if stopping.is_set() and started:  # again and again: one that still imports torch does not hear it
            _signal(ranks, signal.SIGUSR1)
        elif stopping.is_set():
            process.terminate()  # it waits for the other nodes


def _children(pid: int) -> list[int]:
    """The ranks of a torchrun.

    They are told to stop, and not torchrun: it would leave without a word, and those of the other nodes would
    wait for it at their end, for five minutes.
    """
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    with suppress(OSError):
        return [int(child) for file in lists for child in file.read_text().split()]
    return []


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_done(config: Config) -> bool:
    """Whether the run is done, where another node writes that."""
    deadline = time.monotonic() + _LAST_WORD
    while (status := _status(config) or {}).get("state") == "running" and time.monotonic() < deadline:
        time.sleep(1)
    return status.get("state") == "done"


def _found(config: Config) -> Any:
    return find_start(config.work_dir, config.resume, config.to_dict())


def _status(config: Config) -> dict[str, Any] | None:
    return read_status(config.work_dir / "status.json")


if __name__ == "__main__":
    sys.exit(main())
