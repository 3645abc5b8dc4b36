"""docker/: what its files say of one another, and what HEALTHCHECK says of a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from distopt.monitor import StatusFile

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
GPU = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
HEALTHCHECK = DOCKER / "healthcheck.py"
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)


def copies() -> Iterator[tuple[str, str]]:
    """What of the repository the Dockerfile copies: source, target."""
    for arguments in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M):
        *sources, target = arguments.split()
        yield from ((source, target) for source in sources)


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint")
def test_the_dockerfile_is_lint_clean() -> None:
    linted = subprocess.run(
        [str(HADOLINT), DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_dockerfile_pins_no_package_beside_constraints_txt() -> None:
    assert "constraints.txt" in {source for source, _ in copies()}
    assert "make .venv/.for-train" in DOCKERFILE
    assert not re.search(r"[\w\]][=<>~]=\s*\d", DOCKERFILE)


def test_the_base_has_a_python_that_distopt_is_for() -> None:
    version = re.search(r"^ARG BASE=python:(3\.\d+)-slim", DOCKERFILE, re.M)
    assert version
    assert f"Python :: {version[1]}" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("source", sorted({source for source, _ in copies()}))
def test_what_is_copied_is_there_and_not_ignored(source: str) -> None:
    admitted = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    assert (ROOT / source).exists()
    assert any(fnmatch(source, name) or source.startswith(f"{name}/") for name in admitted)


@pytest.mark.parametrize("overrides", [{}, GPU], ids=["cpu", "gpu"])
def test_compose_and_the_dockerfile_know_the_same_names(overrides: dict[str, Any]) -> None:
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
    assert set(overrides.get("services", {})) <= set(COMPOSE["services"])
    for name, service in COMPOSE["services"].items():
        merged = {**service["build"], **overrides.get("services", {}).get(name, {}).get("build", {})}
        assert (DOCKER / merged["context"]).resolve() == ROOT
        assert ROOT / merged["dockerfile"] == DOCKER / "Dockerfile"
        assert set(merged["args"]) <= arguments


def test_compose_runs_what_the_image_has_where_the_image_has_it() -> None:
    command = COMPOSE["services"]["train"]["command"]
    assert f"COPY launch/{command[0]} /usr/local/bin/" in DOCKERFILE
    config = re.fullmatch(r"\$\{CONFIG:-(.+)\}", command[1])
    assert config
    assert (ROOT / config[1]).is_file()
    health = json.loads(re.search(r"^HEALTHCHECK .*\\\n +CMD (.+)$", DOCKERFILE, re.M)[1])  # type: ignore[index]
    for service in COMPOSE["services"].values():
        assert service["volumes"][0].split(":")[:2] == ["runs", health[-1]]
    assert "COPY docker/healthcheck.py /opt/distopt/" in DOCKERFILE
    assert health[-2] == "/opt/distopt/healthcheck.py"


def test_a_stop_leaves_the_ranks_their_time_and_torchrun_some() -> None:
    train = COMPOSE["services"]["train"]
    assert int(train["stop_grace_period"].removesuffix("s")) > int(
        train["environment"]["PET_SHUTDOWN_TIMEOUT"]
    )


def health(runs: Path) -> tuple[int, str]:
    """Exit status, and what is printed, of the healthcheck as the image starts it."""
    command = [sys.executable, "-IS", HEALTHCHECK, runs]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    return ran.returncode, ran.stdout


def write_status(run: Path, silent: float = 0.0, **fields: Any) -> None:
    """A status of a run, as the run itself writes it, but of so many seconds ago and with other fields."""
    run.mkdir(parents=True)
    with StatusFile(run / "status.json", step=7):
        pass
    status = json.loads((run / "status.json").read_text())
    then = datetime.now(UTC) - timedelta(seconds=silent)
    status |= {"updated": then.isoformat(timespec="seconds"), **fields}
    (run / "status.json").write_text(json.dumps(status))


def test_no_run_yet_is_healthy(tmp_path: Path) -> None:
    assert health(tmp_path) == (0, "no run yet\n")
    assert health(tmp_path / "absent") == (0, "no run yet\n")


@pytest.mark.parametrize(
    ("state", "silent", "well"),
    [
        ("running", 60, True),
        ("running", 600, False),
        ("done", 600, True),
        ("preempted", 600, True),
        ("failed", 0, False),
    ],
)
def test_a_run_is_well_unless_it_failed_or_fell_silent(
    tmp_path: Path, state: str, silent: float, well: bool
) -> None:
    write_status(tmp_path / "a", silent, state=state, reason="disk full")
    code, said = health(tmp_path)
    assert code == (0 if well else 1)
    assert f"{tmp_path}/a: {state} at step 7" in said


def test_it_says_why_a_run_is_not_well(tmp_path: Path) -> None:
    write_status(tmp_path / "a", state="failed", reason="rank 1 failed first: disk full")
    assert health(tmp_path)[1].endswith("failed at step 7: rank 1 failed first: disk full\n")
    write_status(tmp_path / "b", silent=-60, state="running")
    assert health(tmp_path)[1] == f"{tmp_path}/b: running at step 7\n"


def test_of_several_runs_the_last_one_of_this_host_counts(tmp_path: Path) -> None:
    write_status(tmp_path / "sweep" / "old", silent=900, state="failed")
    write_status(tmp_path / "sweep" / "new", silent=30)
    write_status(tmp_path / "others", state="failed", host="elsewhere")
    assert health(tmp_path) == (0, f"{tmp_path}/sweep/new: running at step 7\n")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_file_that_is_no_status_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content)
    assert health(tmp_path) == (0, "no run yet\n")


def test_it_imports_neither_torch_nor_distopt() -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-IS", HEALTHCHECK, "absent"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not re.search(r"\| +(torch|distopt)\b", ran.stderr)
