"""Distributed tests that cost milliseconds: gloo ranks that are started once and stay alive between tests.

    def _sum_of_ranks():
        total = torch.tensor(dist.get_rank())
        dist.all_reduce(total)
        return total.item()

    def test_all_reduce_adds_the_ranks():
        assert run_distributed(_sum_of_ranks, world=3) == [3, 3, 3]

The ranks are forked from one process that has imported torch and done nothing else.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from tests.kit.rank import Call, Report, serve

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(
    ["pytest", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch._dynamo"]
)


class RankError(AssertionError):
    """A rank raised, died or did not return; the message holds what each of them had to say."""


def run_distributed(
    function: Callable[..., Any], *args: Any, world: int = 2, timeout: float = 60
) -> list[Any]:
    """Run `function(*args)` on `world` gloo ranks and return what each returned, by rank.

    Every call has a default process group of exactly `world` ranks, the environment variables of torchrun on
    top of the test's own, the test's working directory, one thread, and freshly seeded generators.

    Args:
        function: A module-level function; it travels by pickle.
        *args: Its arguments, also by pickle, as do the results: tensors come back by value.
        world: Number of ranks.
        timeout: Seconds until the ranks are ended and the stack of each is shown.

    Raises:
        RankError: A rank raised, died, or did not return in time. All ranks are ended then, since the
            others may hang in a collective; the next call starts new ones.
    """
    __tracebackhide__ = True
    payload = pickle.dumps((function, args))
    try:
        reports = _call(_start(world), payload, timeout)
    except BaseException:
        close_ranks()
        raise
    for report in reports:
        if report.outcome == "skipped":
            pytest.skip(report.content)
    return [pickle.loads(report.content) for report in reports]


@atexit.register
def close_ranks() -> None:
    """End every rank."""
    for rank in _ranks:
        rank.end(signal.SIGKILL)
    _ranks.clear()


def run_torchrun(
    args: Sequence[str], *, nproc: int = 2, cwd: Path | str | None = None, timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run `python -m distopt.train *args` as `nproc` workers of a real torchrun; captures what it prints."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command = [*torchrun, f"--nproc_per_node={nproc}", "-m", "distopt.train", *args]
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException as error:
            process.terminate()  # torchrun then ends its workers; killed, it would leave them running
            stdout, stderr = process.communicate()
            error.add_note(f"torchrun had printed:\n{stdout}\n{stderr}")
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


class _Rank:
    """One live process, the pipe to it, and the file that takes what it prints."""

    def __init__(self) -> None:
        self.output = tempfile.NamedTemporaryFile("r", errors="replace")  # noqa: SIM115
        self.pipe, theirs = _fork.Pipe()
        with theirs:
            self.process = _fork.Process(target=serve, args=(theirs, self.output.name))
            self.process.start()

    def send(self, call: Call) -> None:
        os.truncate(self.output.name, 0)
        self.pipe.send_bytes(pickle.dumps(call))

    def receive(self) -> Report:
        try:
            report: Report = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join()
            status = self.process.exitcode or 0
            how = f"died of {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            return Report("failed", how)
        return report

    def end(self, how: signal.Signals) -> None:
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, how)
            self.process.join(5)
            self.process.kill()
            self.process.join()

    def printed(self) -> str:
        self.output.seek(0)
        return self.output.read().strip()


_ranks: list[_Rank] = []


def _start(world: int) -> list[_Rank]:
    """The first `world` ranks; those that are missing start side by side."""
    __tracebackhide__ = True
    missing = [_Rank() for _ in range(len(_ranks), world)]
    _ranks.extend(missing)
    _hear(missing, timeout=120)
    return _ranks[:world]


def _call(ranks: list[_Rank], payload: bytes, timeout: float) -> list[Report]:
    __tracebackhide__ = True
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again for the ranks: theirs, if they open a group themselves
    with tempfile.TemporaryDirectory() as folder:
        for number, rank in enumerate(ranks):
            rank.send(
                Call(
                    rank=number,
                    world=len(ranks),
                    port=port,
                    store=f"{folder}/store",
                    cwd=str(Path.cwd()),
                    path=sys.path,
                    environ=dict(os.environ),
                    function=payload,
                )
            )
        reports = _hear(ranks, timeout)
        for rank in ranks:
            rank.pipe.send_bytes(b"all have reported")
        _hear(ranks, timeout)
    return reports


def _hear(ranks: list[_Rank], timeout: float) -> list[Report]:
    """One report of each rank. After a failure the others have a second to report theirs."""
    __tracebackhide__ = True
    reports: dict[_Rank, Report] = {}
    deadline = time.monotonic() + timeout
    while len(reports) < len(ranks):
        silent: dict[object, _Rank] = {rank.pipe: rank for rank in ranks if rank not in reports}
        heard = wait([rank.pipe for rank in silent.values()], max(0, deadline - time.monotonic()))
        if not heard:
            break
        for rank in map(silent.__getitem__, heard):
            reports[rank] = rank.receive()
            if reports[rank].outcome == "failed":
                deadline = min(deadline, time.monotonic() + 1)
    if len(reports) < len(ranks) or any(report.outcome == "failed" for report in reports.values()):
        raise RankError(_describe(ranks, reports, timeout))
    return [reports[rank] for rank in ranks]


def _describe(ranks: list[_Rank], reports: dict[_Rank, Report], timeout: float) -> str:
    """What each rank has to say: failures in the order they came in, then who still runs, then the others."""
    failed = [rank for rank, report in reports.items() if report.outcome == "failed"]
    others = [rank for rank, report in reports.items() if report.outcome != "failed"]
    running = [rank for rank in ranks if rank not in reports]
    for rank in running:
        rank.end(signal.SIGABRT)  # writes the rank's stack to its output
        reports[rank] = Report("failed", "was still running" + ("" if failed else f" after {timeout:g} s"))
    lines = []
    for rank in [*failed, *running, *others]:
        name = f"rank {ranks.index(rank)} of {len(ranks)}"
        outcome, content = reports[rank]
        lines.append(f"{name} {content if outcome == 'failed' else outcome}")
        if printed := rank.printed():
            lines.append(f"----- printed by {name} -----\n{printed}")
    return "\n".join(lines)
