"""`distopt launch`: one set of facts, checked, and what is rendered from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from distopt.cli import main

LAUNCH = Path(__file__).parent.parent / "launch"


def printed(capsys, *argv: str) -> str:
    assert main(["launch", *argv]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("argv", "path"), [(["local"], "local.sh")])
def test_the_scripts_of_the_repository_are_those_of_no_given_facts(capsys, argv, path):
    assert printed(capsys, *argv) == (LAUNCH / path).read_text(encoding="utf-8")


def test_options_win_over_the_file_of_facts(capsys, tmp_path):
    facts = tmp_path / "cluster.yaml"
    facts.write_text("gpus: 4\nenv: {NCCL_DEBUG: WARN}\n")
    text = printed(capsys, "local", "--facts", str(facts), "--gpus", "2")
    assert "RANKS=${RANKS:-2}" in text
    assert "NCCL_DEBUG=${NCCL_DEBUG:-WARN}" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["locl"], "did you mean: local?"),
        (["local", "--nodes", "0"], "--nodes: nodes: wrong value"),
        (["local", "--env", "NCCL_DEBUG"], "--env: env: a variable is written NAME=VALUE"),
        (["local", "configs/quickstart.yaml", "--ranks", "3"], "cannot be divided over 3 ranks"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_printed(capsys, argv, message):
    assert main(["launch", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_an_unknown_fact_is_told_with_its_line_and_the_nearest(capsys, tmp_path):
    facts = tmp_path / "cluster.yaml"
    facts.write_text("gpus: 4\nnodez: 2\n")
    assert main(["launch", "local", "--facts", str(facts)]) == 2
    err = capsys.readouterr().err
    assert f"{facts}:2: nodez: unknown key" in err
    assert "did you mean: nodes?" in err
