"""A TensorBoard event file, each event of which is with the system as soon as it is appended."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from pathlib import Path
from typing import Any

import google_crc32c


class EventFile:
    """Appends events to a file.

    What a full disk breaks off is completed once there is space: a reader goes no further than a torn record.
    The events that come until then are lost, and those after them are not.

    Args:
        path: Of the file, which may hold events.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def append(self, event: Any) -> None:
        """Writes an event.

        Args:
            event: TensorBoard's protocol buffer of that name. Its time is set to now.

        Raises:
            OSError: The disk does not take it.
        """
        self.flush()
        event.wall_time = time.time()
        self._unwritten = record(event.SerializeToString())
        self.flush()

    def flush(self) -> None:
        """Writes what the disk did not take.

        Raises:
            OSError: It still does not.
        """
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        with self._file:
            self.flush()


def next_path(directory: Path) -> Path:
    """Of a new file, whose name comes after those of all that are in the directory.

    TensorBoard reads files in the order of their names, which start with a time in seconds. Where a clock was
    ahead, or two starts are in one second, an earlier start's file would be read last, and purge what came
    after it.
    """
    names = (re.match(r"events\.out\.tfevents\.([0-9]{10})\.", path.name) for path in directory.iterdir())
    newest = max((int(name[1]) for name in names if name), default=0)
    seconds = max(int(time.time()), newest + 1)
    return directory / f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"


def record(data: bytes) -> bytes:
    """`data` as a TFRecord: its length (8 bytes), the length's checksum (4), `data`, and its checksum (4)."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", checksum(length)), data, struct.pack("<I", checksum(data))))


def checksum(data: bytes) -> int:
    """CRC-32C, rotated and shifted, as TFRecords have it.

    TensorBoard's own writer goes through each byte in Python: 0.1 ms for a row of three groups, 7 ms for one
    of 300.
    """
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
