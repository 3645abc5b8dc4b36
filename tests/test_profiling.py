"""Traces of steps: which, of what, on which ranks; and that training does not notice."""

from __future__ import annotations

import errno
import gzip
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distopt import ConfigError, Runner, comm, load_config
from distopt.callbacks import Callback, Run
from distopt.monitor import Throughput
from distopt.operators import own_times, table
from distopt.profiling import REQUEST, Profiler
from tests.kit import run_distributed, run_torchrun
from tests.runs import losses, rows, status, train, train_alone, write_config

STRATEGIES = ("ddp", "fsdp")
SHORT: dict[str, Any] = {"max_steps": 7, "eval": None, "checkpoint": {}}
HERE = __name__


def events(run: Path, first: int, rank: int = 0) -> list[dict[str, Any]]:
    path = run / "traces" / f"step_{first:08}.rank{rank}.pt.trace.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def regions(run: Path, first: int, rank: int = 0) -> list[str]:
    """The names of the regions of a trace, in their order."""
    found = [event for event in events(run, first, rank) if event.get("cat") == "user_annotation"]
    return [event["name"] for event in sorted(found, key=lambda event: event["ts"])]


def steps(run: Path, first: int, rank: int = 0) -> list[int]:
    """Which steps a trace is of."""
    names = [name for name in regions(run, first, rank) if name.startswith("ProfilerStep#")]
    return [int(name.removeprefix("ProfilerStep#")) for name in names]


def traces(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "traces").iterdir())


class Touching(Callback):
    """Asks for a trace after some steps, as `touch` does."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_step(self, run: Run) -> None:
        if run.world.is_main and run.step in self.steps:
            (run.config.work_dir / "profile").touch()


def _train_all(paths: list[Path]) -> None:
    for path in paths:
        train(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name → run directory: traced on both ranks, untraced, and asked for while the run is on."""
    kinds = {
        "traced": {"profile": {"begin": [1, 6], "steps": 2, "ranks": "all"}},
        "plain": {},
        "asked": {
            "profile": {"steps": 1, "ranks": "all"},
            "callbacks": {"type": f"{HERE}:Touching", "steps": [3]},
            "log": {"every": 2},
        },
    }
    paths = {}
    for strategy in STRATEGIES:
        for kind, changes in kinds.items():
            folder = tmp_path_factory.mktemp(f"{strategy}-{kind}")
            paths[f"{strategy}-{kind}"] = write_config(folder, strategy=strategy, **SHORT, **changes)
    run_distributed(_train_all, list(paths.values()))
    return {name: path.parent / "run" for name, path in paths.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_rank_traces_the_steps_of_the_config_with_and_without_one_to_warm_up_in(runs, strategy):
    run = runs[f"{strategy}-traced"]
    assert traces(run) == [f"step_0000000{s}.rank{r}.pt.trace.json.gz" for s in (1, 6) for r in (0, 1)]
    for rank in (0, 1):
        assert steps(run, 1, rank) == [1, 2]
        assert steps(run, 6, rank) == [6, 7]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_parts_of_each_step_are_named_in_their_order(runs, strategy):
    parts = ("data", "forward", "backward", "norms", "optimizer", "other")
    named = [name for name in regions(runs[f"{strategy}-traced"], 6) if name in parts]
    assert named == [*["data", *["forward", "backward"] * 4, "norms", "optimizer", "other"]] * 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_trace_changes_no_bit_of_the_losses(runs, strategy):
    assert losses(runs[f"{strategy}-traced"]) == losses(runs[f"{strategy}-plain"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_file_asks_all_ranks_for_one_trace_after_the_next_logged_step(runs, strategy):
    run = runs[f"{strategy}-asked"]
    assert [steps(run, 6, rank) for rank in (0, 1)] == [[6], [6]]
    assert len(traces(run)) == 2
    assert not (run / "profile").exists()


def test_what_is_asked_for_in_a_trace_comes_after_it(tmp_path):
    path = write_config(tmp_path, **SHORT, profile={"steps": 2})
    Runner(load_config(path), callbacks=[Touching([2, 3])]).train()
    run = tmp_path / "run"
    assert [steps(run, 4), steps(run, 6)] == [[4, 5], [6, 7]]
    assert len(traces(run)) == 2


def test_a_run_that_is_not_traced_has_no_directory_for_it(runs):
    assert not (runs["ddp-plain"] / "traces").exists()


def test_the_log_has_the_operators_that_take_most(runs):
    log = (runs["ddp-traced"] / "logs" / "rank1.log").read_text()
    assert log.count("traced steps ") == 2
    assert "aten::" in log


def test_only_the_ranks_that_are_named_write_and_steps_and_ranks_that_are_not_there_are_told(tmp_path):
    profile = {"begin": [2, 9], "steps": 1, "ranks": [1, 7]}
    run_distributed(train, write_config(tmp_path, max_steps=3, profile=profile))
    assert traces(tmp_path / "run") == ["step_00000002.rank1.pt.trace.json.gz"]
    log = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert "profile.ranks: there are 2 ranks, and no 7" in log
    assert "profile.begin: the run ends at step 3, before 9" in log
    assert f"traced step 2 on rank 1: {tmp_path / 'run' / 'traces'}, or logs/rank1.log says why not" in log


def test_what_else_is_asked_for_is_in_the_trace_and_the_console_says_where_it_is(tmp_path, capsys):
    profile = {"begin": [2], "steps": 1, "shapes": True, "stacks": True, "memory": True}
    data = {"train": {"type": "tests.components:Windows"}, "batch_size": 1}
    train_alone(write_config(tmp_path, **{**SHORT, "max_steps": 2}, data=data, profile=profile))
    found = events(tmp_path / "run", 2)
    assert any("Input Dims" in event.get("args", {}) for event in found)
    assert any(event.get("cat") == "python_function" for event in found)
    assert any(event["name"] == "[memory]" for event in found)
    printed = capsys.readouterr().out.replace("\n", "")
    assert "traced step 2: " in printed
    assert "ui.perfetto.dev" in printed


def test_a_trace_that_the_run_ends_in_is_written_as_it_is(tmp_path):
    train_alone(write_config(tmp_path, max_steps=3, profile={"begin": [2], "steps": 100}))
    assert steps(tmp_path / "run", 2)[:2] == [2, 3]


class FailsInTheTrace(Callback):
    def on_step(self, run: Run) -> None:
        if run.step == 2:
            raise ZeroDivisionError


def test_a_trace_that_the_run_fails_in_is_given_up_and_leaves_the_profiler_free(tmp_path):
    profile = {"begin": [1], "steps": 3}
    path = write_config(tmp_path, max_steps=3, profile=profile)
    with pytest.raises(ZeroDivisionError):
        Runner(load_config(path), callbacks=[FailsInTheTrace()]).train()
    assert not (tmp_path / "run" / "traces").exists()
    train_alone(path)
    assert steps(tmp_path / "run", 1) == [1, 2, 3]


def test_a_trace_that_cannot_be_written_is_a_warning_and_training_goes_on(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "traces").touch()
    train_alone(write_config(tmp_path, max_steps=6, profile={"begin": [2, 4], "steps": 1}))
    assert status(tmp_path / "run")["state"] == "done"
    log = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert log.count("the profiler fails, training goes on: FileExistsError") == 1


def test_who_asks_for_a_trace_again_is_told_again_that_it_cannot_be_written(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "traces").touch()
    path = write_config(tmp_path, **{**SHORT, "max_steps": 8}, profile={"steps": 1})
    Runner(load_config(path), callbacks=[Touching([1, 4])]).train()
    log = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert log.count("the profiler fails, training goes on: FileExistsError") == 2


def test_a_disk_that_has_become_read_only_is_no_failure_of_a_profiler_that_nobody_asked(
    tmp_path, monkeypatch
):
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == REQUEST:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    train_alone(write_config(tmp_path, **SHORT))
    assert "profiler" not in (tmp_path / "run" / "logs" / "rank0.log").read_text()


def test_what_it_takes_to_begin_a_trace_is_no_part_of_the_step(tmp_path, monkeypatch):
    clock, begin = time.perf_counter, Profiler.begin
    passed = 0.0

    def begin_slowly(profiler: Profiler, step: int) -> None:
        nonlocal passed
        passed += 1000.0
        begin(profiler, step)

    monkeypatch.setattr(Profiler, "begin", begin_slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + passed)
    monkeypatch.setattr("distopt.runner.Throughput", partial(Throughput, clock=time.perf_counter))
    train_alone(write_config(tmp_path, **SHORT, profile={"begin": [4], "steps": 1}))
    for row in rows(tmp_path / "run"):
        assert row["time"]["data"] + row["perf"]["step_time"] < 1000


def test_ranks_that_wait_for_a_trace_to_be_written_are_as_patient_as_with_a_checkpoint(tmp_path, monkeypatch):
    profile = {"begin": [2, 6], "steps": 1}
    runner = Runner(load_config(write_config(tmp_path, **SHORT, profile=profile)))
    meet, marks = comm.meet, []

    def meet_and_tell() -> None:
        marks.append(runner.progress.at)
        meet()

    monkeypatch.setattr(comm, "meet", meet_and_tell)
    runner.train()
    assert [str(mark) for mark in marks if "trace" in mark] == ["step 2, trace", "step 6, trace"]
    assert all(mark.may_be_slow for mark in marks)


BAD = {
    "an unknown key": ({"step": 3}, "profile.step: unknown key"),
    "step 0": ({"begin": [0]}, "profile.begin.0"),
    "no list": ({"begin": 5}, "profile.begin"),
    "traces that overlap": ({"begin": [5, 1, 7]}, "profile.begin: the traces from step 5 and from step 7"),
    "no rank": ({"ranks": []}, "profile.ranks"),
    "a negative rank": ({"ranks": [-1]}, "profile.ranks"),
    "a word that is none": ({"ranks": "some"}, "profile.ranks"),
}


@pytest.mark.parametrize(("profile", "message"), BAD.values(), ids=BAD)
def test_what_profile_is_given_wrongly_is_said_once_with_its_key(tmp_path, profile, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path, profile=profile))
    assert message in str(caught.value)
    assert str(caught.value).count("profile.") == 1


@pytest.mark.gpu
@pytest.mark.slow
def test_a_trace_has_the_kernels_of_the_gpu_and_the_log_those_that_take_most(tmp_path):
    config = write_config(tmp_path, **SHORT, profile={"begin": [3]})
    done = run_torchrun([str(config)], nproc=1)
    assert done.returncode == 0, done.stderr
    assert any(event.get("cat") == "kernel" for event in events(tmp_path / "run", 3))
    assert "on the GPU" in (tmp_path / "run" / "logs" / "rank0.log").read_text()


def span(name: str, begin: float, duration: float, thread: int = 1, kind: str = "cpu_op") -> dict[str, Any]:
    return {"ph": "X", "cat": kind, "name": name, "ts": begin, "dur": duration, "tid": thread}


def test_an_operator_s_own_time_is_without_those_that_it_calls():
    spans = [span("a", 0, 10), span("b", 1, 4), span("c", 2, 1), span("b", 5, 3), span("b", 0, 2, thread=2)]
    assert own_times(spans) == {"a": 3, "b": 8, "c": 1}


def test_where_there_is_a_gpu_the_table_is_of_its_kernels():
    lines = table([span("aten::mm", 0, 50), span("gemm", 9, 30, thread=7, kind="kernel")]).splitlines()
    assert lines[0].startswith("on the GPU")
    assert lines[1].split() == ["gemm", "1", "0.030", "100.0%"]
    assert len(lines) == 2
