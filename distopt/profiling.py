"""Traces of single steps by torch's profiler: those of the config, and those asked for while a run is on."""

from __future__ import annotations

import gzip
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final

from torch.profiler import ProfilerAction, profile, record_function

from distopt import comm, operators
from distopt.comm import World
from distopt.config import Config
from distopt.errors import listed
from distopt.monitor import Console

logger = logging.getLogger(__name__)

REQUEST: Final = "profile"
"""The file in the run directory that asks for a trace."""
_NEVER: Final = sys.maxsize
_LARGE: Final = 2**29
"""Bytes of a trace that it would take long to read again, for the table of operators."""


class Regions:
    """The parts of a step as named regions of a trace, one after the other."""

    def __init__(self) -> None:
        self._region: record_function | None = None

    def mark(self, part: str) -> None:
        """Says what begins now."""
        self.end()
        self._region = record_function(part)
        self._region.__enter__()  # type: ignore[no-untyped-call]

    def beside(self, mark: Callable[[str], None]) -> Callable[[str], None]:
        """A function that marks a part here, and wherever `mark` does."""

        def both(part: str) -> None:
            mark(part)
            self.mark(part)

        return both

    def end(self) -> None:
        """Ends the region that is open."""
        if self._region:
            self._region.__exit__(None, None, None)
            self._region = None


class Profiler:
    """Traces steps, each time after one to warm up in. Whatever fails in it is no reason to end the training.

    All ranks know which steps; those of `config.ranks` write a trace. It is a context: at its end a trace
    that is not complete is written as it is or, where the run has failed, given up.

    Args:
        config: Of the run.
        world: This process among all.
        console: From `open_console`.
        step: Optimizer steps done before.
        last_step: Where the run ends.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        console: Console,
        *,
        step: int,
        last_step: int,
    ) -> None:
        self._config, self._world, self._console = config.profile, world, console
        self._last_step = last_step
        self._request = config.work_dir / REQUEST
        self._traces = config.work_dir / "traces"
        ranks = range(world.size) if self._config.ranks == "all" else self._config.ranks
        self._ranks = [rank for rank in ranks if rank < world.size]  # that write
        self._begins = sorted(begin for begin in self._config.begin if begin > step)
        self._first = self._last = 0  # of the trace that is being made
        self._profile: profile | None = None
        self._is_failing = False
        self.regions: Regions | None = None
        """Takes the parts of the step, where it is traced by this rank."""
        self.next = self._next()
        """From which step on `begin` and `end` have something to do."""

    def is_requested(self) -> bool:
        """Whether somebody has asked for a trace by a file; once for each. For rank 0 alone to ask."""
        if not os.path.lexists(self._request):  # to ask a read-only disk to remove it would be an error
            return False
        try:
            self._request.unlink()
        except OSError as error:
            self._fail(error)
            return False
        return True

    def request(self, step: int) -> None:
        """Asks for a trace that begins after the next step; to be called on all ranks at the same `step`."""
        self._is_failing = False  # who asks again is told again
        self._begins = sorted({*self._begins, max(step + 2, self._last + 1)})
        if self.next > step:
            self.next = self._next()

    def begin(self, step: int) -> None:
        """To be called before each step from `next` on."""
        if self._first == 0:
            self._first = self._begins.pop(0)
            self._last = self._first + self._config.steps - 1
            self.next = 0
            if self._world.rank in self._ranks:
                with self._harmless():
                    self._start(step)
        if self._profile and step >= self._first:
            self.regions = Regions()
            self.regions.mark("data")

    def end(self, step: int) -> None:
        """To be called after each step from `next` on."""
        if self.regions:
            self.regions.end()
            self.regions = None
        if self._profile:
            with self._harmless():
                self._profile.step()
        if step == self._last:
            self._stop()
            if self._ranks and self._world.is_main and 0 not in self._ranks:
                self._tell_of_others(step)
            self._begins = [begin for begin in self._begins if begin > step]
            self.next = self._next()

    def __enter__(self) -> Profiler:
        if self._world.is_main:
            for warning in self._lint():
                logger.warning(warning)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._stop()
        elif self._world.device.type == "cpu":  # a GPU would be waited for, in vain where a rank has gone
            self._give_up()

    def _lint(self) -> Iterator[str]:
        """What is probably not meant, and no reason to refuse a shorter run or fewer ranks."""
        if late := [begin for begin in self._config.begin if begin > self._last_step]:
            yield f"profile.begin: the run ends at step {self._last_step}, before {listed([*map(str, late)])}"
        ranks = [] if self._config.ranks == "all" else self._config.ranks
        if absent := [rank for rank in ranks if rank >= self._world.size]:
            yield f"profile.ranks: there are {self._world.size} ranks, and no {listed([*map(str, absent)])}"

    def _next(self) -> int:
        """The step before the next trace: it is to warm up in."""
        return self._begins[0] - 1 if self._begins else _NEVER

    def _start(self, step: int) -> None:
        config = self._config
        self._profile = profile(
            schedule=self._action,
            on_trace_ready=self._write,
            record_shapes=config.shapes,
            with_stack=config.stacks,
            profile_memory=config.memory,
        )
        self._profile.step_num = min(step, self._first - 1)
        self._profile.start()
        if step == self._first:  # there was none to warm up in
            self._profile.step()

    def _action(self, step: int) -> ProfilerAction:
        if step < self._first:
            return ProfilerAction.WARMUP
        if step < self._last:
            return ProfilerAction.RECORD
        return ProfilerAction.RECORD_AND_SAVE if step == self._last else ProfilerAction.NONE

    def _write(self, done: profile) -> None:
        self._traces.mkdir(exist_ok=True)
        name = f"step_{self._first:08}.rank{self._world.rank}"
        path = self._traces / f"{name}.pt.trace.json.gz"
        plain, packed = self._traces / f"{name}.partial", self._traces / f"{name}.partial.gz"
        try:
            done.export_chrome_trace(str(plain))
            trace = plain.read_bytes()
            table = operators.table(json.loads(trace)["traceEvents"]) if len(trace) < _LARGE else "too large"
            packed.write_bytes(gzip.compress(trace, compresslevel=5))
            packed.replace(path)
        finally:
            for draft in (plain, packed):
                draft.unlink(missing_ok=True)
        steps = _steps(self._first, done.step_num - 1)
        self._console.note(f"traced {steps}: {path}; open it at ui.perfetto.dev")
        logger.info("traced %s: %s\n%s", steps, path, table)

    def _tell_of_others(self, last: int) -> None:
        """For ranks whose console is silent."""
        steps, ranks = _steps(last - self._config.steps + 1, last), listed([*map(str, self._ranks)])
        note = (
            f"traced {steps} on rank {ranks}: {self._traces}, or logs/rank{self._ranks[0]}.log says why not"
        )
        self._console.note(note)
        logger.info(note)

    def _stop(self) -> None:
        """Ends the trace that is being made, if any; to be called on all ranks."""
        if self._first == 0:
            return
        if self._profile:
            with self._harmless():
                self._profile.stop()
        self._profile = None
        self._first = 0
        comm.meet()  # the others are to wait here: in a step they would be taken to hang

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """What is raised within is a warning, and the end of the trace."""
        try:
            yield
        except Exception as error:
            self._fail(error)
            self._give_up()

    def _give_up(self) -> None:
        """Ends the trace that is being made, if any, and does not write it."""
        if self._profile:
            self._profile.on_trace_ready = None
            with suppress(Exception):
                self._profile.stop()
        self._profile = None

    def _fail(self, error: Exception) -> None:
        if not self._is_failing:
            self._is_failing = True
            logger.warning("the profiler fails, training goes on: %s: %s", type(error).__name__, error)


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"
