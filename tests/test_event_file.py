"""An event file: what is appended is there, whatever the disk and the clocks do."""

from __future__ import annotations

import io
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from distopt.monitor.event_file import EventFile, next_path, record
from tests.kit.disk import space_left


def event(step: int) -> Any:
    return Event(step=step, summary=Summary(value=[Summary.Value(tag="loss", simple_value=step)]))


def steps(path: Path) -> list[int]:
    return [each.step for each in EventFileLoader(str(path)).Load()]


@given(st.binary(max_size=200))
def test_a_record_is_what_tensorboard_writes(data):
    written = io.BytesIO()
    RecordWriter(written).write(data)
    assert record(data) == written.getvalue()


def test_an_event_is_on_disk_once_it_is_appended(tmp_path):
    with closing(EventFile(tmp_path / "events")) as file:
        for step in (1, 2):
            file.append(event(step))
            assert steps(tmp_path / "events")[-1] == step


def test_an_event_says_when_it_was(tmp_path):
    before = time.time()
    with closing(EventFile(tmp_path / "events")) as file:
        file.append(event(1))
    [written] = EventFileLoader(str(tmp_path / "events")).Load()
    assert before <= written.wall_time <= time.time()


def test_events_are_appended_to_those_that_are_there(tmp_path):
    for step in (1, 2):
        with closing(EventFile(tmp_path / "events")) as file:
            file.append(event(step))
    assert steps(tmp_path / "events") == [1, 2]


@pytest.mark.parametrize("space", [0, 1, 13, 30])
def test_a_full_disk_tears_no_event_and_costs_those_after_it_only_while_it_is_full(tmp_path, space):
    path = tmp_path / "events"
    file = EventFile(path)
    loader = EventFileLoader(str(path))  # reads on where it stopped, as TensorBoard does
    file.append(event(1))
    with space_left(path, space):
        for step in (2, 3, 4):
            with pytest.raises(OSError, match="File too large"):
                file.append(event(step))
            assert [each.step for each in loader.Load()] == ([1] if step == 2 else [])
    file.append(event(5))
    file.close()
    assert [each.step for each in loader.Load()] == [2, 5]


@pytest.mark.parametrize("finish", [EventFile.flush, EventFile.close])
def test_what_the_disk_did_not_take_is_written_by_a_flush_and_at_the_end(tmp_path, finish):
    path = tmp_path / "events"
    file = EventFile(path)
    with space_left(path, 3), pytest.raises(OSError, match="File too large"):
        file.append(event(1))
    finish(file)
    assert steps(path) == [1]


@pytest.mark.parametrize("there", [(), (1,), (1, 5_000_000_000), (4_999_999_999, 5_000_000_000)], ids=str)
def test_a_new_file_is_the_last_by_name_whatever_the_clock_says(tmp_path, there):
    names = [f"events.out.tfevents.{seconds:010d}.zz.9.0" for seconds in there]
    for name in (
        *names,
        *(f"events.out.tfevents.{odd}" for odd in ("0.hparams", "²", "99999999999.zz", "1")),
    ):
        (tmp_path / name).touch()
    for _ in range(12):
        new = next_path(tmp_path)
        new.touch()
        names.append(new.name)
    assert sorted(set(names)) == names
