"""The log of each rank, and what torch is not let say."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from pathlib import Path

import pytest

from distopt.monitor import open_console, rank_log

logger = logging.getLogger("distopt.somewhere")


def log_text(directory: Path, rank: int = 0) -> str:
    return (directory / f"rank{rank}.log").read_text()


def test_records_stand_in_the_file_of_the_global_rank(tmp_path: Path) -> None:
    with rank_log(tmp_path / "logs", 3, open_console(3)):
        logger.info("resumed at step %d", 200)
    assert log_text(tmp_path / "logs", 3).endswith("rank3 INFO distopt.somewhere: resumed at step 200\n")


def test_a_log_begins_with_where_the_rank_runs(tmp_path: Path) -> None:
    with rank_log(tmp_path, 1, open_console(1)):
        pass
    assert f"on {socket.gethostname()}, pid {os.getpid()}: " in log_text(tmp_path, 1)


def test_a_restart_continues_the_file(tmp_path: Path) -> None:
    for attempt in ("first", "second"):
        with rank_log(tmp_path, 1, open_console(1)):
            logger.info(attempt)
    assert [line.rpartition(" ")[2] for line in log_text(tmp_path, 1).splitlines()[1::2]] == [
        "first",
        "second",
    ]


def test_warnings_of_python_go_to_the_log_and_in_one_line_to_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rank_log(tmp_path, 0, open_console(0)), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("the moon is full", UserWarning, stacklevel=1)
    assert "UserWarning: the moon is full" in log_text(tmp_path)
    printed = capsys.readouterr()
    assert printed.out.startswith(f"warning: the moon is full ({__file__}:")
    assert (printed.out.count("\n"), printed.err) == (1, "")


def test_warnings_of_other_ranks_go_to_their_log_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rank_log(tmp_path, 1, open_console(1)):
        logger.warning("slow disk")
    assert "WARNING distopt.somewhere: slow disk" in log_text(tmp_path, 1)
    assert capsys.readouterr() == ("", "")


def test_information_stays_off_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rank_log(tmp_path, 0, open_console(0)):
        logger.info("cache warm")
    assert capsys.readouterr() == ("", "")


def test_an_exception_that_passes_leaves_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FloatingPointError), rank_log(tmp_path, 0, open_console(0)):
        raise FloatingPointError("loss is nan")
    text = log_text(tmp_path)
    assert "stopped by FloatingPointError\nTraceback" in text
    assert text.endswith("FloatingPointError: loss is nan\n")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interruption_is_one_line_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: BaseException
) -> None:
    with pytest.raises(type(ending)), rank_log(tmp_path, 0, open_console(0)):
        raise ending
    last = log_text(tmp_path).splitlines()[-1]
    assert last.endswith(f"ended by {type(ending).__name__}" + (": 3" if str(ending) else ""))
    assert capsys.readouterr() == ("", "")


def test_an_exit_without_an_error_is_not_logged(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), rank_log(tmp_path, 0, open_console(0)):
        raise SystemExit(0)
    assert "SystemExit" not in log_text(tmp_path)


def test_logging_is_as_before_once_the_log_is_closed(tmp_path: Path) -> None:
    root = logging.getLogger("distopt")
    before = (root.level, list(root.handlers), warnings.showwarning)
    with rank_log(tmp_path, 0, open_console(0)):
        pass
    assert (root.level, list(root.handlers), warnings.showwarning) == before
