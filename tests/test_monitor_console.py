"""What the user sees: in a pipe, and on a terminal that is really one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import termios
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from distopt.monitor import open_console
from distopt.monitor.console import tensorboard_command


def parameter(fqn: str, numel: int, *aliases: str) -> dict[str, Any]:
    return {"fqn": fqn, "aliases": list(aliases), "shape": [numel], "numel": numel}


GROUPS: list[dict[str, Any]] = [
    {
        "name": "norm",
        "rules": ["norm"],
        "options": {"lr": 3e-4, "weight_decay": 0.0},
        "why": {"weight_decay": "0.1 x 0 (norm_decay_mult) = 0"},
        "params": [parameter(f"blocks.{i}.norm{k}.weight", 96) for i in range(3) for k in (1, 2)],
    },
    {
        "name": "default",
        "rules": [],
        "options": {"lr": 3e-3, "weight_decay": 0.1},
        "why": {},
        "params": [
            parameter("embedding.weight", 24576, "head.weight"),
            *(
                parameter(f"blocks.{i}.{layer}.weight", 36864)
                for i in range(3)
                for layer in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
            ),
        ],
    },
]


def training_row(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": 0,
        "loss": 3.21034,
        "lr": {"norm": 3e-5, "default": 3e-4},
        "grad_norm": 1.0,
        "perf": {"step_time": 0.0213, "samples_per_second": 192.0, "tokens_per_second": 12_288.0},
    }


def evaluation_row(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "eval": {"loss": 1.93214}}


RUN = f"""
from distopt.monitor import open_console
progress = open_console(0).progress(600, {GROUPS}, {{"bigram": 2.3812}})
progress.log({training_row(10)})
progress.log({training_row(20)})
progress.log({evaluation_row(20)})
print("said by the model")
progress.log({training_row(30)})
progress.close()
"""
"""A short run, as a program."""


@cache
def run_in_pipe(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


@cache
def run_in_terminal(columns: int, **environment: str) -> str:
    """Everything that the short run sends to a terminal of that width."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    surroundings = {**os.environ, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen([sys.executable, "-c", RUN], env=surroundings, stdout=theirs, stderr=theirs)
    os.close(theirs)
    sent = b""
    while chunk := read_terminal(ours):
        sent += chunk
    os.close(ours)
    assert process.wait() == 0, sent.decode()
    return sent.decode()


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux tells that the other side has closed
        return b""


def left_on_screen(sent: str) -> list[str]:
    """What a terminal shows in the end: carriage returns, line feeds, cursor up and erased lines followed."""
    lines, at, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", sent):
        if token == "\r":
            column = 0
        elif token == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif token == "\x1b[1A":
            at -= 1
        elif token == "\x1b[2K":
            lines[at] = ""
        elif not token.startswith("\x1b"):
            lines[at] = lines[at][:column].ljust(column) + token + lines[at][column + len(token) :]
            column += len(token)
    return lines


def header_and_table(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    console = open_console(0)
    console.header({"model": "ByteGPT", "parameters": "468,000 (468,000 trainable)"})
    console.groups(GROUPS)
    return capsys.readouterr().out


def test_in_a_pipe_every_row_is_a_plain_line() -> None:
    assert run_in_pipe().splitlines() == [
        "step  10/600  loss 3.2103  lr 3.00e-04  21.3 ms/step  12.3k tokens/s  eta 0:13",
        "step  20/600  loss 3.2103  lr 3.00e-04  21.3 ms/step  12.3k tokens/s  eta 0:12",
        "step  20  eval/loss 1.9321  (bigram 2.3812)",
        "said by the model",
        "step  30/600  loss 3.2103  lr 3.00e-04  21.3 ms/step  12.3k tokens/s  eta 0:12",
    ]


@pytest.mark.parametrize(
    "environment", [{"COLUMNS": "20"}, {"FORCE_COLOR": "1"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_in_a_pipe_nothing_changes_the_lines(environment: dict[str, str]) -> None:
    assert run_in_pipe(**environment) == run_in_pipe()


def test_on_a_terminal_the_line_is_rewritten_and_only_evaluations_stay() -> None:
    sent = run_in_terminal(100)
    assert "step  10/600" in sent
    assert [line for line in left_on_screen(sent) if line] == [
        "step  20  eval/loss 1.9321  (bigram 2.3812)",
        "said by the model",
    ]


def test_on_a_terminal_nothing_is_shown_before_the_first_row() -> None:
    sent = run_in_terminal(100)
    assert re.findall(r"\S+", re.sub(r"\x1b\[[?\d;]*[A-Za-z]", " ", sent))[:2] == ["step", "10/600"]


def test_a_terminal_keeps_its_cursor_even_from_a_run_that_is_killed() -> None:
    sent = run_in_terminal(100)
    assert sent.rindex("\x1b[?25l") < sent.index("\x1b[?25h") < sent.index("step  10/600")


def test_on_a_narrow_terminal_step_loss_and_time_left_remain() -> None:
    assert "\x1b[2Kstep  20/600  loss 3.2103  eta 0:12\r" in run_in_terminal(40)


def test_a_terminal_narrower_than_that_gets_what_fits() -> None:
    assert all(len(line) <= 20 for line in re.findall(r"\x1b\[2K(step.+?/600.*?)\r", run_in_terminal(20)))


def test_a_terminal_that_cannot_rewrite_gets_plain_lines() -> None:
    assert run_in_terminal(100, TERM="dumb").replace("\r\n", "\n") == run_in_pipe()


def test_no_color_means_no_style_at_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in header_and_table(80, monkeypatch, capsys)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in header_and_table(80, monkeypatch, capsys)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_groups_fits(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = header_and_table(width, monkeypatch, capsys).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[5:] == [
        "norm           6      576   0.1%  0.0003    0  norm",
        "    weight_decay: 0.1 x 0 (norm_decay_mult) = 0",
        "    blocks.{0-2}.norm{1-2}.weight",
        "default       13  466,944  99.9%   0.003  0.1  base values",
        *{
            80: [
                "    embedding.weight = head.weight, blocks.{0-2}.attention.qkv.weight,",
                "    blocks.{0-2}.attention.out.weight, blocks.{0-2}.mlp.up.weight and 1 more",
            ],
            120: [
                "    embedding.weight = head.weight, blocks.{0-2}.attention.qkv.weight, "
                "blocks.{0-2}.attention.out.weight,",
                "    blocks.{0-2}.mlp.up.weight, blocks.{0-2}.mlp.down.weight",
            ],
        }[width],
        "The progress line shows the lr of default.",
        "",
    ]


def test_many_groups_get_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    open_console(0).groups([{**GROUPS[0], "name": f"layer.{i}"} for i in range(48)])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 48 + 2


def test_the_summary_compares_with_the_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    open_console(0).summary(
        Path("runs/quickstart"),
        step=600,
        seconds=72.4,
        loss=1.65,
        evaluation={"loss": 1.71, "accuracy": 0.5},
        baselines={"unigram": 3.16, "bigram": 2.38},
        checkpoint="checkpoints/step_00000600",
    )
    _, *lines, curves = capsys.readouterr().out.splitlines()
    assert lines == [
        "  finished       step 600 in 1:12",
        "  loss/train     1.6500",
        "  eval/loss      1.7100  1.4500 below unigram 3.1600, 0.6700 below bigram 2.3800",
        "  eval/accuracy  0.5000",
        "  checkpoint     runs/quickstart/checkpoints/step_00000600",
    ]
    assert curves.endswith("tensorboard --logdir runs/quickstart")


def test_the_command_that_shows_the_curves_works_where_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = tmp_path / ".venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "tensorboard").symlink_to(shutil.which("true") or "/bin/true")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(venv / "python"))
    monkeypatch.setenv("PATH", "")
    assert tensorboard_command(Path("runs/a b")) == ".venv/bin/tensorboard --logdir 'runs/a b'"
    monkeypatch.setenv("PATH", str(venv))
    assert tensorboard_command(tmp_path / "runs" / "x") == "tensorboard --logdir runs/x"
    (venv / "tensorboard").unlink()
    assert tensorboard_command(Path("/elsewhere")) == f"{venv}/python -m tensorboard.main --logdir /elsewhere"


def test_a_character_that_the_terminal_lacks_stops_nothing() -> None:
    code = "from distopt.monitor import open_console; open_console(0).note('0.1 × 0')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0.1 ? 0\n"


def test_a_reader_that_goes_away_stops_nothing(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from distopt.monitor import Monitor, open_console, rank_log
console, groups = open_console(0), {GROUPS}
with rank_log(Path(), 0, console):
    input()
    console.header({{"model": "ByteGPT"}})
    console.groups(groups)
    with Monitor(Path(), console, rank=0, first_step=0, last_step=600, groups=groups, config="") as monitor:
        monitor.log({training_row(10)})
    print("said by the model", flush=True)
    console.summary(Path(), step=10, seconds=1, loss=1, evaluation={{}}, baselines={{}}, checkpoint=None)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(b"the pipe is closed\n")
    assert (process.returncode, said) == (0, b"")
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    assert (tmp_path / "rank0.log").read_text().count("standard output is closed, training goes on") == 1


def test_other_ranks_print_nothing_and_load_no_rich() -> None:
    code = (
        "import sys; from distopt.monitor import open_console; console = open_console(1);"
        "console.header({}); console.groups([]); console.note('x'); console.warning('x');"
        "print('rich' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
