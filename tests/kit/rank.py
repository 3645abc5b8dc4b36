"""The child's side of the distributed test kit: a rank that runs the functions it is sent.

A call comes in as a pickled `Call` and its `Report` goes back. The process group is held until the parent has
heard from every rank, since the slower ones may still be in a collective.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import random
import resource
import sys
import traceback
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any, Literal, NamedTuple


class Call(NamedTuple):
    """A function to run, and where: as which rank, in which folder, with which environment."""

    rank: int
    world: int
    port: int
    store: str
    cwd: str
    path: list[str]
    environ: dict[str, str]
    function: bytes


class Report(NamedTuple):
    """What a rank has to say: that it is ready, its pickled result, why it skips, or how it failed."""

    outcome: Literal["ready", "returned", "skipped", "failed"]
    content: Any = None


def serve(parent: Connection, output: str) -> None:
    """Run the calls that come from `parent` until it is gone; what they print goes to the file `output`."""
    _become_a_rank(output)
    import torch.distributed as dist

    inbox: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_receive, args=(parent, inbox), daemon=True).start()
    while True:
        parent.send_bytes(pickle.dumps(Report("ready")))
        report = _run(pickle.loads(inbox.get()))
        parent.send_bytes(pickle.dumps(report))
        inbox.get()  # all have reported
        if dist.is_initialized():
            dist.destroy_process_group()


def _become_a_rank(output: str) -> None:
    import _pytest.assertion
    import _pytest.config

    os.setsid()  # Ctrl-C is for pytest alone
    sink = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    faulthandler.enable()  # the kit ends a hung rank by SIGABRT: that shows where it hung
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _pytest.assertion.install_importhook(_pytest.config.get_config())  # `assert a == b` explains itself


def _receive(parent: Connection, inbox: SimpleQueue[bytes]) -> None:
    """Fill the inbox. When the parent is gone, end this process, even from inside a hung collective."""
    try:
        while True:
            inbox.put(parent.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


def _run(call: Call) -> Report:
    import pytest
    import torch.distributed as dist

    try:
        _take_the_place_of_the_test(call)
        _reset_torch()
        # A file, because a TCPStore looks its peers up by DNS: at times that alone takes 5 s.
        store = dist.FileStore(call.store, call.world)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=call.rank, world_size=call.world)
        dist.barrier()  # a rank that left at once would break the others' connecting
        function, args = pickle.loads(call.function)
        return Report("returned", pickle.dumps(function(*args)))
    except pytest.skip.Exception as skip:
        return Report("skipped", str(skip))
    except BaseException as error:
        below_this_frame = error.__traceback__ and error.__traceback__.tb_next
        text = "".join(traceback.format_exception(type(error), error, below_this_frame))
        return Report("failed", f"raised\n{text}")
    finally:
        sys.stdout.flush()


def _take_the_place_of_the_test(call: Call) -> None:
    """Its folder, import path and environment, with what torchrun adds for a worker."""
    os.chdir(call.cwd)
    sys.path[:] = call.path
    os.environ.clear()
    os.environ.update(
        call.environ,
        RANK=str(call.rank),
        WORLD_SIZE=str(call.world),
        LOCAL_RANK=str(call.rank),
        LOCAL_WORLD_SIZE=str(call.world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(call.port),
        OMP_NUM_THREADS="1",
    )


def _reset_torch() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    if torch.are_deterministic_algorithms_enabled():  # setting it at all imports the compiler
        torch.use_deterministic_algorithms(False)
