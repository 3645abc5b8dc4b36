"""logs/rank<N>.log: what every rank had to say."""

from __future__ import annotations

import logging
import os
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distopt.errors import ConfigError, PeerError
from distopt.monitor.console import Console


@contextmanager
def rank_log(directory: Path, rank: int, console: Console) -> Iterator[None]:
    """Sends the loggers below `distopt`, Python's warnings and what ended the run to this rank's file.

    Warnings go to the console as well, as one line: on rank 0 alone, since the others' console is silent.

    Args:
        directory: Of the files; made where it is missing. An existing file is continued.
        rank: Global rank.
        console: From `open_console`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = _ToFile(directory / f"rank{rank}.log", encoding="utf-8")
    file.setFormatter(logging.Formatter(f"%(asctime)s rank{rank} %(levelname)s %(name)s: %(message)s"))
    handlers = (file, _ToConsole(console))
    ours, pythons = logging.getLogger("distopt"), logging.getLogger("py.warnings")
    level = ours.level
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    for handler in handlers:
        ours.addHandler(handler)
        pythons.addHandler(handler)
    ours.info("on %s, pid %d: %s", socket.gethostname(), os.getpid(), shlex.join(sys.argv))
    try:
        yield
    except ConfigError as error:  # the console has it already
        ours.info("stopped by %s", error)
        raise
    except PeerError as error:  # whose traceback is of nothing but a connection that was closed
        ours.info("%s", error)
        raise
    except Exception as error:
        ours.exception("stopped by %s", type(error).__name__)
        raise
    except BaseException as error:  # Ctrl-C, an exit: nothing that a traceback would explain
        if not (isinstance(error, SystemExit) and not error.code):
            ours.info("ended by %s", ": ".join(filter(None, (type(error).__name__, str(error)))))
        raise
    finally:
        for handler in handlers:
            ours.removeHandler(handler)
            pythons.removeHandler(handler)
        logging.captureWarnings(False)
        ours.setLevel(level)
        with suppress(OSError):
            file.close()


class _ToFile(logging.FileHandler):
    """Keeps what a full disk does not take until it does; warnings are on the console as well."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class _ToConsole(logging.Handler):
    """Shows warnings on the console. An exception is left to the traceback that Python prints."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is None:
            message = record.getMessage()
            self._console.warning(_without_source(message) if record.name == "py.warnings" else message)


def _without_source(warning: str) -> str:
    """`x.py:3: UserWarning: text` and a line of source → `text (x.py:3)`."""
    return re.sub(r"^(.+?:\d+): \w+: (.*)", r"\2 (\1)", warning.partition("\n")[0])
