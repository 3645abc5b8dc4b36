"""A run as a session of TensorBoard's HParams page, on which runs are compared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from distopt.monitor.event_file import EventFile

_FILE = "events.out.tfevents.0.hparams"
"""Sorts before the files of all writers: a loader that goes from file to file does not wait in it."""
_STEP = -1
"""Is purged by no writer, not even by one that starts afresh."""


class Session:
    """The run's hyperparameters and how it ended, in an event file of their own in the run's directory.

    TensorBoard keeps what it reads first of either. So each start replaces the file, and a resume is the
    same session. There is no experiment summary: with one, which of the runs' is used would be chance, and
    without one TensorBoard compares all hyperparameters and scalars that it finds.

    Args:
        directory: Of the run's event files.
        hparams: Name → value: a number, a bool or a text.
    """

    def __init__(self, directory: Path, hparams: Mapping[str, bool | float | str]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.plugins.hparams.plugin_data_pb2 import (  # type: ignore[import-untyped]
            HParamsPluginData,
            SessionStartInfo,
        )

        info = SessionStartInfo(start_time_secs=time.time())
        for name, value in hparams.items():
            kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
            setattr(info.hparams[name], f"{kind}_value", value)
        self._path = directory / _FILE
        directory.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name("hparams.tmp")
        draft.unlink(missing_ok=True)
        with closing(EventFile(draft)) as file:
            file.append(Event(file_version="brain.Event:2"))
            file.append(_event("session_start_info", HParamsPluginData(session_start_info=info)))
        draft.replace(self._path)

    def end(self, *, succeeded: bool) -> None:
        """Says how the run ended; one that goes on, was killed or is to be continued has no end."""
        from tensorboard.plugins.hparams import api_pb2  # type: ignore[import-untyped]
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
        info = SessionEndInfo(status=status, end_time_secs=time.time())
        with suppress(OSError), closing(EventFile(self._path)) as file:  # a full disk
            file.append(_event("session_end_info", HParamsPluginData(session_end_info=info)))


def flattened(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Dotted key and value of all that a config says; a list of scalars as text, nothing for null and []."""
    for key, value in config.items():
        name = f"{before}{key}"
        if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            yield from flattened(value, f"{name}.")
        elif value not in (None, []):
            yield name, value if isinstance(value, bool | int | float | str) else str(value)


def _event(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
    from tensorboard.plugins.hparams import metadata

    value = Summary.Value(
        tag=f"_hparams_/{tag}",
        metadata=metadata.create_summary_metadata(data),
        tensor=metadata.NULL_TENSOR,
    )
    return Event(step=_STEP, summary=Summary(value=[value]))
