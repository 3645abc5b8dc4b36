"""A run that is told to stop: what it says, and what its status holds."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distopt.checkpoint import directory
from distopt.faults import Stopped, check_signals, held_signals, stop_signals
from distopt.train import main
from tests.covering import left_to_system
from tests.kit import run_distributed
from tests.runs import status, write_config


@pytest.fixture(autouse=True)
def handlers_of_before():
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


SIGNALS = pytest.mark.parametrize(
    "number", left_to_system([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], but=[signal.SIGTERM])
)


@pytest.mark.slow
@SIGNALS
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_same_command_continues(tmp_path, number):
    path = write_config(tmp_path, max_steps=1_000_000, checkpoint={"every": None}, eval=None)
    command = [sys.executable, "-u", "-m", "distopt.train", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step") and "10/" in line:
                break
        process.send_signal(number)
        printed, said = process.communicate()
    assert (process.returncode, said) == (0, "")
    assert f"{number.name}; the same command continues" in printed
    found = status(tmp_path / "run")
    assert (found["state"], found["reason"]) == ("preempted", number.name)
    assert found["step"] >= 10
    newest = directory.newest(tmp_path / "run")
    assert directory.read_progress(newest).step == int(found["checkpoint"].rpartition("_")[2])


def _main(path: Path) -> int:
    return main([str(path)])


@SIGNALS
def test_a_signal_in_the_writing_of_a_checkpoint_does_not_break_it_off(tmp_path, number):
    callback = {"type": "tests.components:SignalWhileSaving", "number": int(number)}
    path = write_config(tmp_path, callbacks=[callback])
    assert run_distributed(_main, path, world=1) == [0]
    assert [found.name for found in directory.committed(tmp_path / "run")] == ["step_00000004"]
    assert status(tmp_path / "run")["checkpoint"] == "checkpoints/step_00000004"
    assert status(tmp_path / "run")["state"] == "preempted"


@SIGNALS
def test_a_signal_that_is_not_held_stops_at_once(number):
    def goes_on():
        signal.raise_signal(number)
        pytest.fail("the signal did nothing")

    with pytest.raises(Stopped, match=number.name), stop_signals():
        goes_on()


def test_a_held_signal_stops_at_the_next_check():
    passed = []

    def goes_on():
        check_signals()
        signal.raise_signal(signal.SIGTERM)
        passed.append("the signal")
        check_signals()
        passed.append("the check")

    with pytest.raises(Stopped, match="SIGTERM"), stop_signals(), held_signals():
        goes_on()
    assert passed == ["the signal"]


def test_a_held_signal_stops_at_the_end_at_the_latest():
    with pytest.raises(Stopped), stop_signals(), held_signals():
        signal.raise_signal(signal.SIGTERM)


def test_an_error_after_a_signal_is_the_stop_with_its_cause():
    def breaks_off():
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("connection closed by peer")

    with pytest.raises(Stopped) as caught, stop_signals(), held_signals():
        breaks_off()
    assert str(caught.value.__cause__) == "connection closed by peer"


def test_an_error_without_a_signal_passes():
    with pytest.raises(RuntimeError, match="of its own"), stop_signals(), held_signals():
        raise RuntimeError("of its own")


def test_a_repeated_sigterm_breaks_nothing_off():
    def tidies_up():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped), stop_signals():
        tidies_up()


def test_a_sigterm_after_the_end_of_a_stopped_run_does_not_kill():
    with pytest.raises(Stopped), stop_signals():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_the_handlers_of_before_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_of_a_run_that_is_over_stops_no_other():
    with pytest.raises(Stopped), stop_signals():
        signal.raise_signal(signal.SIGTERM)
    check_signals()
