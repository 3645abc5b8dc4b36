"""Writing a checkpoint, at once or beside the training: all ranks together, complete or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from distopt.checkpoint import manifest
from distopt.checkpoint.directory import commit, partial_of, remove, write_text


class Snapshot(NamedTuple):
    """What a checkpoint is to hold."""

    tensors: dict[str, Any]
    """In mappings of any depth; of DTensors each rank has its part."""
    documents: dict[str, str]
    """File name → text; rank 0's are written."""


class Writer:
    """Writes one checkpoint at a time, on a thread of its own unless told otherwise; every rank has one.

    Beside the run's own state there is one copy of it in the CPU's memory, kept from save to save.

    Args:
        asynchronous: Go on while it is written.
        device: This rank's own.
    """

    def __init__(self, *, asynchronous: bool, device: torch.device) -> None:
        self.pending: Path | None = None
        self.seconds = 0.0
        """That the last one took to be written."""
        self._asynchronous = asynchronous
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        if asynchronous:
            # On the training's group, collectives of two threads would be taken for one another's.
            self._group = dist.new_group(backend="gloo")
            self._options = StagingOptions(
                use_pinned_memory=device.type == "cuda",
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
            self._stager = DefaultStager(self._options)

    def begin(self, directory: Path, snapshot: Snapshot) -> None:
        """Takes a copy of the state; when this returns, training may change it.

        Raises:
            OSError: As `finish`, of what was not finished yet.
        """
        self.finish()
        self.pending = directory
        if not self._asynchronous:
            self._write(directory, snapshot, None)
            return
        tensors: Any = self._stager.stage(snapshot.tensors)
        if torch.__version__ < "2.13":
            self._stager = DefaultStager(self._options)  # that of 2.11 can be used once
        copy = Snapshot(tensors, snapshot.documents)
        self._thread = Thread(target=self._write, args=(directory, copy, self._group), name="checkpoint")
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether this rank has nothing more to write; the others may have."""
        return self._thread is None or not self._thread.is_alive()

    def finish(self) -> Path | None:
        """Waits for the checkpoint that was begun, and returns it; None where there is none.

        Raises:
            OSError: On every rank, where one could not write; nothing is left behind.
        """
        if self._thread is not None:
            self._thread.join()
        written, error = self.pending, self._error
        self.pending = self._thread = self._error = None
        if error is not None:
            raise error
        return written

    def _write(self, directory: Path, snapshot: Snapshot, group: dist.ProcessGroup | None) -> None:
        began = time.monotonic()
        try:
            write(directory, snapshot, group)
        except BaseException as error:  # for `finish`, on the thread that asks
            self._error = error
        self.seconds = time.monotonic() - began


def write(directory: Path, snapshot: Snapshot, group: dist.ProcessGroup | None = None) -> None:
    """Writes and commits a checkpoint; every rank calls it and writes its part.

    Args:
        directory: Where it will be once it is complete.
        snapshot: What it is to hold.
        group: For collectives, on the CPU; None for the default one.

    Raises:
        OSError: On every rank, where one could not write; nothing is left behind.
    """
    partial, rank = partial_of(directory), dist.get_rank()
    if rank == 0:
        remove(partial)  # of a run that was killed, perhaps with more ranks
    dist.barrier(group)
    entries: dict[str, manifest.Entry] = {}

    def write_tensors() -> dict[str, manifest.Entry]:
        state_dict_saver.save(snapshot.tensors, checkpoint_id=partial, process_group=group)
        # By the rank that wrote them, who has them in memory still.
        return {path.name: manifest.entry_of(path) for path in partial.glob(f"__{rank}_*")}

    def write_the_rest() -> dict[str, manifest.Entry]:
        if rank == 0:
            for name, content in snapshot.documents.items():
                write_text(partial / name, content)
            commit(directory, known=entries)
        return {}

    for act in (write_tensors, write_the_rest):
        outcomes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, _outcome(act), group)
        for cause, written in outcomes:
            if cause is not None:
                if rank == 0:
                    remove(partial)
                raise OSError(f"{directory}: the checkpoint could not be written: {cause}")
            entries.update(written)


def first_line(error: BaseException) -> str:
    """What went wrong on the first rank that failed."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return (str(error) or type(error).__name__).splitlines()[0]


def _outcome(
    act: Callable[[], dict[str, manifest.Entry]],
) -> tuple[str | None, dict[str, manifest.Entry]]:
    """Why it failed, or what it has to tell."""
    try:
        return None, act()
    except (CheckpointException, OSError) as error:
        return first_line(error), {}
