"""Throughput, against a clock that the test sets."""

from __future__ import annotations

import contextlib

import pytest

from distopt.data import Step
from distopt.monitor import Throughput


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take(throughput: Throughput, *samples: int) -> None:
    """A step on each of some batches, by their sizes."""
    for _ in throughput.waiting(Step([], size) for size in samples):
        pass


def test_rates_are_those_since_the_last_measurement(clock: Clock) -> None:
    throughput = Throughput(0, tokens_per_sample=10, clock=clock)
    take(throughput, *[32] * 10)
    clock.now = 100.0
    throughput.measure(10)
    take(throughput, *[64] * 10)
    clock.now = 105.0
    assert throughput.measure(20) == {
        "step_time": 0.5,
        "samples_per_second": 128.0,
        "tokens_per_second": 1280.0,
        "tokens_per_second_per_rank": 1280.0,
        "data_wait": 0.0,
    }


def test_a_smaller_batch_counts_as_what_it_is(clock: Clock) -> None:
    throughput = Throughput(0, clock=clock)
    take(throughput, 16, 16, 4)
    clock.now = 3.0
    assert throughput.measure(3)["samples_per_second"] == 12.0


def test_without_tokens_per_sample_there_is_no_rate_of_tokens(clock: Clock) -> None:
    throughput = Throughput(0, clock=clock)
    clock.now = 1.0
    assert "tokens_per_second" not in throughput.measure(1)


def test_time_in_a_pause_does_not_count(clock: Clock) -> None:
    throughput = Throughput(0, clock=clock)
    clock.now = 1.0
    with throughput.pause():
        clock.now = 50.0
    clock.now = 51.0
    assert throughput.measure(2)["step_time"] == 1.0


def test_a_pause_that_fails_still_ends(clock: Clock) -> None:
    throughput = Throughput(0, clock=clock)
    with contextlib.suppress(ValueError), throughput.pause():
        clock.now = 50.0
        raise ValueError
    clock.now = 52.0
    assert throughput.measure(2)["step_time"] == 1.0


def test_after_a_resume_only_the_steps_done_here_count(clock: Clock) -> None:
    throughput = Throughput(200, clock=clock)
    clock.now = 10.0
    assert throughput.measure(210)["step_time"] == 1.0
