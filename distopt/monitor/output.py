"""Standard output as rich writes it, in a way that no reader's whim can end the training."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any

from rich.console import Console

logger = logging.getLogger(__name__)


class Output(Console):
    """rich's console without markup. Colours follow the terminal and `NO_COLOR`."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A character that the terminal's encoding lacks must not stop the training.
            sys.stdout.reconfigure(errors="replace")
        super().__init__(
            highlight=False,
            markup=False,
            emoji=False,
            # rich alone would keep bold and dim under NO_COLOR.
            color_system=None if os.environ.get("NO_COLOR") else "auto",
        )
        self._is_failing = False

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's; what the disk that takes the output has no room for is not shown."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._warn_once(error)

    def write_line(self, text: str) -> None:
        """Prints a line as it is, in a tenth of the time that `print` takes."""
        if self.quiet:
            return
        try:
            self.file.write(f"{text}\n")
            self.file.flush()
        except BrokenPipeError:
            self.on_broken_pipe()
        except OSError as error:
            self._warn_once(error)

    def _warn_once(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            logger.warning("standard output cannot be written, training goes on: %s", error)

    def on_broken_pipe(self) -> None:
        """Falls silent where the reader has gone (`… | head`); rich's own way is to exit."""
        self.quiet = True
        # What is buffered still, and what the user's code prints, has to go somewhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        logger.warning("standard output is closed, training goes on")
