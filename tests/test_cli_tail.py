"""`distopt tail`: what a run's directory tells, while it runs and after, in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from distopt.cli import main
from distopt.cli.run_lines import Lines
from distopt.cli.run_report import report, table
from distopt.cli.run_view import RunView, Watch
from distopt.cli.tail import EXIT_STATUS, follow
from distopt.monitor.jsonl import JsonLines
from tests.runs import STEPS, rows, train_alone, write_config
from tests.test_monitor_console import left_on_screen, read_terminal

COMMAND = [sys.executable, "-m", "distopt", "tail"]
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of 12 steps, with evaluations at 5, 10 and 12."""
    folder = tmp_path_factory.mktemp("finished")
    train_alone(write_config(folder))
    return folder / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is at step 20 of 600."""
    path = tmp_path / "runs" / "a"
    path.mkdir(parents=True)
    say(path)
    log(path, *(row(step) for step in (10, 20)))
    return path


def say(run: Path, state: str = "running", *, updated: float = NOON, **fields: Any) -> None:
    """Writes status.json, as of a moment."""
    status = {"state": state, "step": 0, "last_step": 600, "checkpoint": None, "reason": None, "restarts": 0}
    status |= {"host": "node7", "pid": 4242, "updated": datetime.fromtimestamp(updated, UTC).isoformat()}
    (run / "status.json").write_text(json.dumps(status | fields))


def log(run: Path, *added: dict[str, Any], first_step: int = 1) -> None:
    lines = JsonLines(run / "metrics.jsonl", first_step)
    for item in added:
        lines.log(item)
    lines.close()


def row(step: int) -> dict[str, Any]:
    perf = {"step_time": 0.1, "samples_per_second": 320.0, "tokens_per_second": 20480.0}
    return {"step": step, "epoch": 0, "loss": 2.5, "lr": {"norm": 3e-4, "default": 6e-4}, "perf": perf}


def view(**fields: Any) -> RunView:
    given = {"state": "running", "step": 20, "last_step": 600, "training": row(20), "seen": 3.0}
    return RunView("runs/a", **given | fields)


def following(*runs: Path, scenes: list[Callable[[], None]], at: float = NOON) -> list[RunView]:
    """Follows runs as in a pipe; each scene happens while it waits. What it saw in the end."""
    watches = [Watch(run, clock=lambda: at) for run in runs]

    def end() -> None:
        for run in runs:
            say(run, "done", step=600)

    play = iter([*scenes, end])
    return [*follow(watches, Lines(watches), lambda: next(play)())]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def snapshot(run: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [run, *run.rglob("*")]}


def test_once_reports_what_became_of_a_run(finished, capsys):
    assert main(["tail", "--once", str(finished)]) == 0
    title, bar, *facts = printed(capsys)
    assert title.startswith(f"{finished}  done  ")
    assert bar.endswith(f"step {STEPS}/{STEPS}  100%")
    last, evaluation = rows(finished)[-1], rows(finished, "eval")[-1]
    text = "\n".join(facts)
    assert f"loss        {last['loss']:.4f}  grad_norm {last['grad_norm']:.4f}" in text
    assert f"eval/loss   {evaluation['eval']['loss']:.4f}  best  at step 12" in text
    assert "tokens/s" in text
    assert "checkpoint  step_00000012  0:0" in text
    assert f"process     {os.getpid()} on {socket.gethostname()}" in text
    assert f"lr          {last['lr']['embedding']:.2e}  embedding\n" in text


def test_a_running_one_has_its_time_left_and_tells_when_it_was_seen(run):
    now = Watch(run, clock=lambda: NOON + 4).look()
    title, bar = (line.plain for line in report(now, 100, 40)[:2])
    assert title == f"{run}  running  seen 0:04 ago"
    assert bar.endswith("step 20/600  3%  eta 0:58")


def test_restarts_skipped_steps_and_the_reason_are_told(run):
    say(run, "failed", reason="rank 1 failed first: killed", restarts=2, step=20)
    log(run, {**row(30), "skipped": 1})
    text = "\n".join(line.plain for line in report(Watch(run).look(), 100, 40))
    assert "\n  rank 1 failed first: killed\n" in text
    assert "restarts  2, 0 left\n" in text
    assert "skipped   1 step of this start\n" in text


@pytest.mark.parametrize("state", EXIT_STATUS)
def test_the_exit_status_says_in_what_state_the_run_is(run, state, capsys):
    now = datetime.now(UTC).timestamp()
    if state == "missing":
        (run / "status.json").unlink()
    else:
        is_lost = state == "lost"
        say(run, "running" if is_lost else state, updated=now - 3600 * is_lost)
    expected = {"done": 0, "failed": 1, "missing": 2, "running": 3, "lost": 4, "preempted": 75}[state]
    assert main(["tail", "--once", str(run)]) == expected
    assert state in capsys.readouterr().out
    assert main(["tail", "--json", str(run)]) == expected
    assert json.loads(capsys.readouterr().out)["state"] == state


def test_of_several_the_one_that_is_the_worst_off_decides(run, finished, capsys):
    say(run, "preempted")
    assert main(["tail", "--once", str(finished), str(run)]) == 75
    assert main(["tail", "--once", str(run), str(finished / "not")]) == 2


def test_what_is_a_file_is_an_error_of_the_users(finished, capsys):
    assert main(["tail", str(finished / "config.yaml")]) == 2
    assert "is a file, and no run directory" in capsys.readouterr().err


def test_json_has_a_line_for_each_run_and_is_strict(run, finished, capsys):
    log(run, {**row(30), "loss": float("nan")})
    main(["tail", "--json", str(run), str(finished)])
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in printed(capsys))
    assert (first["step"], first["training"]["loss"]) == (30, None)
    assert second["training"] == rows(finished)[-1]
    assert second["evaluation"] == rows(finished, "eval")[-1]


def test_it_loads_no_torch_and_writes_nothing(finished):
    before = snapshot(finished)
    code = "import sys; from distopt.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for form in (["--once"], ["--json"], []):
        done = subprocess.run([sys.executable, "-c", code, "tail", *form, finished], capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
    assert snapshot(finished) == before


def test_in_a_pipe_each_row_is_a_line_as_the_run_itself_prints_it(finished):
    done = subprocess.run([*COMMAND, finished], capture_output=True, text=True, check=True)
    *lines, state = done.stdout.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("step  5  eval/loss ")
    assert lines[1].startswith(f"step  6/12  loss {rows(finished)[5]['loss']:.4f}  lr ")
    assert state == "done at step 12/12"


def test_rows_come_as_they_are_logged(run, capsys):
    shown: list[list[str]] = []

    def scene(step: int) -> Callable[[], None]:
        def play() -> None:
            shown.append(printed(capsys))
            log(run, row(step))

        return play

    assert following(run, scenes=[scene(30), scene(40)])[0].state == "done"
    assert [[line.split("  loss")[0] for line in lines] for lines in shown] == [
        ["running at step 20/600 on node7", "step  10/600", "step  20/600"],
        ["step  30/600"],
    ]
    assert printed(capsys)[0].startswith("step  40/600")


def test_a_restart_is_told_and_what_it_records_anew_comes(run, capsys):
    def dies() -> None:
        say(run, updated=NOON - 61, step=20)

    def restarts() -> None:
        say(run, pid=4343, step=10, restarts=1)
        log(run, {**row(20), "loss": 2.25}, first_step=10)

    watch = Watch(run, clock=lambda: NOON)
    play = iter([restarts, lambda: say(run, "done", pid=4343, step=600)])
    dies()
    follow([watch], Lines([watch]), lambda: next(play)())
    lines = [line.split("  100 ms")[0] for line in printed(capsys)]
    assert lines == [
        "step  10/600  loss 2.5000",
        "step  20/600  loss 2.5000",
        "lost at step 20/600: not seen for 1:01",
        "running at step 20/600 on node7, restart 1",
        "step  20/600  loss 2.2500",
        "done at step 600/600",
    ]


def test_a_failed_run_that_torchrun_starts_again_is_followed(run, capsys):
    say(run, "failed", reason="rank 1 failed first: killed", step=20, restarts_left=1)
    following(run, scenes=[lambda: say(run, pid=4343, step=20, restarts=1)])
    lines = printed(capsys)
    assert "failed at step 20/600, 1 restart left: rank 1 failed first: killed" in lines
    assert lines[-1] == "done at step 600/600"


def test_a_failed_run_that_nobody_starts_again_has_ended(run):
    say(run, "failed")
    assert Watch(run, clock=lambda: NOON).look().has_ended
    say(run, "failed", restarts_left=1)
    assert Watch(run, clock=lambda: NOON + 61).look().has_ended


def test_a_run_that_is_not_there_yet_is_waited_for(tmp_path, capsys):
    queued = tmp_path / "queued"

    def begins() -> None:
        queued.mkdir()
        log(queued, row(10), first_step=0)
        say(queued, step=10)

    following(queued, scenes=[lambda: None, begins])
    out, err = capsys.readouterr()
    assert err == f"{queued}: no run yet, waiting for it\n"
    assert [line.split("  loss")[0] for line in out.splitlines()] == [
        "running at step 10/600 on node7",
        "step  10/600",
        "done at step 600/600",
    ]


def test_on_a_terminal_too_it_is_said_that_there_is_no_run_yet(tmp_path):
    assert [line.plain for line in report(Watch(tmp_path).look(), 100, 24)] == [
        f"{tmp_path}  missing  no run there yet"
    ]


def test_of_several_runs_each_line_names_its_own(run, tmp_path, capsys):
    other = tmp_path / "runs" / "other"
    following(run, other, scenes=[lambda: (other.mkdir(), say(other, pid=7))])
    lines = printed(capsys)
    assert f"{other}  running at step 0/600 on node7" in lines
    assert f"{run}      done at step 600/600" in lines


def test_it_ends_when_nobody_reads_any_more(run):
    say(run, updated=datetime.now(UTC).timestamp())
    process = subprocess.Popen([*COMMAND, run], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running at step 20/600 on node7\n"
    process.stdout.close()
    log(run, row(30))
    assert process.wait(timeout=60) == 0


def test_without_a_heartbeat_for_a_minute_it_is_lost(run):
    assert Watch(run, clock=lambda: NOON + 59).look().state == "running"
    assert Watch(run, clock=lambda: NOON + 61).look().state == "lost"
    say(run, "done")
    assert Watch(run, clock=lambda: NOON + 61).look().state == "done"


def test_a_heartbeat_that_is_seen_counts_whatever_the_clocks_say(run):
    now = iter([NOON + 600.0, NOON + 615.0, NOON + 616.0, NOON + 676.0])
    watch = Watch(run, clock=lambda: next(now))
    assert watch.look().state == "lost"
    say(run, updated=NOON + 15)
    assert [(seen.state, seen.seen) for seen in (watch.look(), watch.look(), watch.look())] == [
        ("running", 0.0),
        ("running", 1.0),
        ("lost", 61.0),
    ]


def test_a_clock_that_is_ahead_is_no_reason_to_doubt(run):
    say(run, updated=NOON + 600)
    seen = Watch(run, clock=lambda: NOON).look()
    assert (seen.state, seen.seen) == ("running", 0.0)


def test_the_newest_checkpoint_is_the_one_on_disk(finished):
    seen = Watch(finished, clock=lambda: NOON).look()
    assert seen.checkpoint == "step_00000012"
    assert seen.checkpoint_age is not None


def test_groups_of_the_same_learning_rate_share_a_line():
    lr = {"norm": 6e-4, "embedding": 3e-4, "default": 6e-4}
    lines = [line.plain for line in report(view(training={**row(20), "lr": lr}), 100, 40)]
    assert lines[-2:] == ["  lr     6.00e-04  norm, default", "         3.00e-04  embedding"]


@pytest.mark.parametrize("width", [60, 100])
def test_thirty_learning_rates_fit_on_a_terminal(width):
    lr = {f"layer.{i}.attention.norm": 1e-3 * 0.9**i for i in range(30)}
    lines = [line.plain for line in report(view(training={**row(20), "lr": lr}), width, 24)]
    assert len(lines) < 24
    assert max(map(len, lines)) <= width
    shown = sum(line.count("layer.") for line in lines)
    assert shown == 30 or f"and {30 - shown} more" in lines[-1]


@pytest.mark.parametrize("width", [50, 60, 120])
def test_the_table_has_as_many_columns_as_fit(width):
    views = [view(), view(state="failed", checkpoint="step_00000020"), RunView("runs/long_name")]
    lines = [line.plain for line in table(views, width)]
    assert max(map(len, lines)) <= width
    assert [line.split()[1] for line in lines] == ["state", "running", "failed", "missing"]
    assert ("seen" in lines[0], "loss" in lines[0]) == (width > 60, True)


@pytest.fixture
def terminal(run: Path) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], str]]]:
    """The command on a terminal, and what it has sent when that contains a text, or the end has come."""
    say(run, updated=datetime.now(UTC).timestamp())
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    process = subprocess.Popen(
        [*COMMAND, run.name],
        cwd=run.parent,
        env={**os.environ, "TERM": "xterm-256color"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    sent = b""

    def until(text: str) -> str:
        nonlocal sent
        while text not in sent.decode(errors="replace") and (chunk := read_terminal(ours)):
            sent += chunk
        return sent.decode()

    yield process, until
    process.kill()
    process.wait()
    os.close(ours)


def test_on_a_terminal_the_report_is_renewed_until_the_run_ends(run, terminal):
    process, until = terminal
    until("step 20/600")
    log(run, row(30))
    until("step 30/600")
    say(run, "preempted", step=30, reason="SIGTERM", updated=datetime.now(UTC).timestamp())
    lines = [line for line in left_on_screen(until("never said")) if line]
    assert process.wait() == 75
    assert lines[0].startswith("a  preempted  0:0")
    assert lines[1:3] == ["  SIGTERM", "  ━━──────────────────────────────────────  step 30/600  5%"]
    assert sum("step 30/600" in line for line in lines) == 1


def test_on_a_terminal_ctrl_c_leaves_the_report_and_the_cursor(terminal):
    process, until = terminal
    until("default")
    process.send_signal(signal.SIGINT)
    sent = until("never said")
    assert process.wait() == 130
    assert next(filter(None, left_on_screen(sent))).startswith("a  running  seen 0:0")
    assert sent.rindex("\x1b[?25h") > sent.rindex("\x1b[?25l")
    assert "Traceback" not in sent
