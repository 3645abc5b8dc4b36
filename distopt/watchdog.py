"""The watchdog: a thread of every rank that finds hangs, and ends what cannot end by itself."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Never

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from distopt import failures
from distopt.config import Config
from distopt.errors import PeerError
from distopt.failures import Failure
from distopt.hangs import Report, judge
from distopt.monitor import record_failure
from distopt.progress import Mark, Place, Progress, main_thread

_SLOWNESS = 4
"""How much longer a slow phase may take."""
_PATIENCE = 3
"""Beats after which a rank that reported nothing is silent."""
_GRACE = 10.0
"""Seconds in which a main thread may end by itself, after another rank has failed."""

logger = logging.getLogger(__name__)


def collective_timeout(config: Config) -> timedelta | None:
    """Of the process group: later than the watchdog, which knows more; None for torch's own."""
    minutes = config.hang_timeout
    return None if minutes is None else timedelta(minutes=_SLOWNESS * minutes + 1)


class Watchdog(AbstractContextManager["Watchdog"]):
    """Watches this rank's progress, tells the others of it, and hears of their failures.

    Where nothing has moved for too long, a rank judges by what all have reported which is the cause, and
    posts that as the run's first failure. Then every rank writes its stacks and ends: by the exception that
    comes of a connection broken off, or by force where its main thread is stuck.

    Args:
        progress: What the loop marks.
        config: Of the run.
    """

    def __init__(self, progress: Progress, config: Config) -> None:
        self._progress, self._work_dir = progress, config.work_dir
        self._seconds = config.hang_timeout and 60 * config.hang_timeout
        self._beat = 5.0 if self._seconds is None else min(5.0, self._seconds / 10)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._mark, self._idle, self._beats = progress.at, 0.0, 0
        self._turn: int | None = None  # to judge
        self._earlier: dict[int, Report] | None = None
        self._log: IO[str] | None = None

    def __enter__(self) -> Watchdog:
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        # A connection of its own: one that the main thread waits in would be waited for.
        self._store = distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        self._store.set_timeout(timedelta(seconds=30))
        self._guard()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=1)  # it may wait for a store whose host is gone
        if isinstance(error, PeerError):
            self._stand_in()
        faulthandler.cancel_dump_traceback_later()
        if self._log:
            self._log.close()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._done.wait(self._beat):
            now = time.monotonic()
            # A process that was stopped for an hour has not been idle for one.
            self._idle += min(now - last, 2 * self._beat)
            last = now
            if self._progress.at != self._mark:
                self._mark, self._idle, self._turn, self._earlier = self._progress.at, 0.0, None, None
            try:
                failure = failures.posted(self._store) or self._look()
            except RuntimeError:  # the store's host is stopped or gone
                failure = self._alone()
            if failure is not None and not self._done.is_set():
                self._end(failure)

    def _look(self) -> Failure | None:
        """Reports, and judges where it is time and this rank's turn."""
        place = main_thread() if self._idle else Place("", False)
        self._beats += 1
        self._store.set(f"distopt/report/{self._rank}", json.dumps(Report(self._beats, self._mark, place)))
        self._guard()
        limit = self._limit
        if limit is None or self._idle < limit:
            return None
        if self._turn is None:
            self._turn = self._store.add("distopt/judges", 1)
        # The second to come judges if the first does not; all at once would read world² reports.
        waited = (self._idle - limit) / (_PATIENCE * self._beat)
        if self._earlier is None and waited >= self._turn - 1:
            self._earlier = self._reports()
        elif self._earlier is not None and waited >= self._turn:
            failure = judge(self._earlier, self._reports(), self._rank, limit)
            return failures.post(self._store, failure)
        return None

    @property
    def _limit(self) -> float | None:
        return self._seconds and self._seconds * (_SLOWNESS if self._mark.may_be_slow else 1)

    def _guard(self) -> None:
        """Has this rank's stacks written should this thread not run, since another holds the GIL."""
        if self._seconds is None:
            return
        path = self._logs / f"rank{self._rank}.log"
        if self._log is None and path.exists():
            with suppress(OSError):
                self._log = path.open("a", encoding="utf-8")
        faulthandler.dump_traceback_later(self._seconds, file=self._log or 2)

    def _reports(self) -> dict[int, Report]:
        found = {}
        for rank in range(self._world):
            key = f"distopt/report/{rank}"
            if self._store.check([key]):
                beats, mark, place = json.loads(self._store.get(key))
                found[rank] = Report(beats, Mark(*mark), Place(*place))
            else:
                found[rank] = Report(0, Mark(0, 0, "start"), Place("an unknown place", False))
        return found

    def _alone(self) -> Failure | None:
        """The failure, where nobody can be asked whose it is."""
        if self._limit is None or self._idle < self._limit:
            return None
        reason = f"no progress for {self._limit:.0f} s, and the store of the process group does not answer"
        return Failure(self._rank, reason, str(self._mark), told_by=self._rank, positions=("",))

    def _end(self, failure: Failure) -> None:
        """Ends this rank."""
        tells = failure.told_by == self._rank
        if failure.positions:  # a hang
            self._write_stacks(failure)
            self._meet(failure)
            if tells:
                self._tell(failure)
                self._leave(failure)
        if failure.rank != self._rank:
            failures.break_off()
        if not self._done.wait(_GRACE):
            self._leave(failure)

    def _write_stacks(self, failure: Failure) -> None:
        """Every thread of this process, while it hangs: logs/rank<N>.stacks.txt."""
        frames = sys._current_frames()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [f"{now} {failure}\n", *(f"{position}\n" for position in failure.positions)]
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and (frame := frames.get(thread.ident or 0)):
                lines.append(f"\nthread {thread.name} (most recent call last):\n")
                lines += traceback.format_stack(frame)
        with suppress(OSError):
            self._logs.mkdir(parents=True, exist_ok=True)
            with (self._logs / f"rank{self._rank}.stacks.txt").open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def _meet(self, failure: Failure) -> None:
        """Waits until all that can have written their stacks: the first to leave moves the others."""
        end = time.monotonic() + _GRACE / 2
        with suppress(RuntimeError):
            self._store.add("distopt/written", 1)
            while self._store.add("distopt/written", 0) < self._world - len(failure.silent):
                if time.monotonic() > end:
                    break
                time.sleep(0.05)

    def _tell(self, failure: Failure) -> None:
        """Once for all ranks: on stderr, and to torchrun."""
        lines = [str(failure), *failure.positions, f"stacks: {self._logs}/rank*.stacks.txt"]
        sys.stderr.write("\n  ".join(lines) + "\n")
        try:
            raise TimeoutError(str(failure))
        except TimeoutError as error:
            with suppress(OSError):
                get_error_handler().record_exception(error)

    def _stand_in(self) -> None:
        """Writes what is rank 0's to write, where it cannot."""
        with suppress(RuntimeError):
            failure = failures.posted(self._store)
            if failure and 0 in failure.silent and failure.told_by == self._rank:
                record_failure(self._work_dir / "status.json", str(failure))

    def _leave(self, failure: Failure) -> Never:
        """Ends the process, whatever its other threads do."""
        logger.info("%s", failure)
        status = self._work_dir / "status.json"
        if self._rank == 0 and (status.exists() or not failure.mistakes):  # of a mistake nothing is written
            record_failure(status, str(failure))
        self._stand_in()
        sys.stderr.flush()
        os._exit(1)

    @property
    def _logs(self) -> Path:
        return self._work_dir / "logs"
