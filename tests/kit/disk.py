"""A disk that is about to be full."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def space_left(path: Path, size: int) -> Iterator[None]:
    """Within it, no file of this process can grow beyond `size` bytes more than `path` has.

    A write is cut off there as by a full disk; the error is EFBIG.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
