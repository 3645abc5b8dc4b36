"""What is shipped, what it needs, and which part of it may know which other."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import distopt

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"].values()
REQUIREMENTS = [
    requirement
    for requirement in map(Requirement, (*PROJECT["dependencies"], *chain.from_iterable(EXTRAS)))
    if requirement.name != "distopt"
]
PINS = {
    canonicalize_name(name): version
    for name, _, version in (
        line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
    )
    if version
}

ENTRY = {"train", "cli", "__main__"}
ROOMS = {"optim", "schedule", "parallel", "data", "models", "checkpoint", "monitor", "callbacks"}
GROUND = {"names", "blocks", "comm", "rounds", "registry", "config", "errors", "files"}


def run(*command: str | Path, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environ}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays clean."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "distopt", source / "distopt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    built = run(*pip, "--wheel-dir", target, source)
    assert built.returncode == 0, built.stderr
    return next(target.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_types_and_its_license_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"distopt-{distopt.__version__}.dist-info"
    files = (path for path in (ROOT / "distopt").rglob("*") if path.is_file())
    sources = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {name for name in names if not name.startswith(info)} == sources
    assert f"{info}/licenses/LICENSE" in names


@pytest.mark.slow
def test_the_installed_wheel_has_the_distopt_command(wheel: Path, tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", tmp_path)
    installed = run(*pip, wheel)
    assert installed.returncode == 0, installed.stderr
    ran = run(tmp_path / "bin" / "distopt", "--version", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert ran.stdout == f"distopt {distopt.__version__}\n"


def test_every_public_name_can_be_had() -> None:
    assert all(getattr(distopt, name) is not None for name in distopt.__all__)


@pytest.mark.parametrize("module", ["", ".cli", ".train", ".config", ".registry", ".errors"])
def test_what_has_to_answer_at_once_imports_no_torch(module: str) -> None:
    ran = run(sys.executable, "-c", f"import sys, distopt{module}; sys.exit('torch' in sys.modules)")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_requirement_is_pinned_to_a_version_it_allows(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_requirement_has_its_reason_in_the_docs(requirement: Requirement) -> None:
    assert f"| {requirement.name} |" in (ROOT / "docs" / "dependencies.md").read_text()


@pytest.mark.parametrize(
    "path", [path.relative_to(ROOT / "distopt") for path in sorted((ROOT / "distopt").rglob("*.py"))], ids=str
)
def test_dependencies_run_one_way(path: Path) -> None:
    """train, cli → runner and what is beside it → the rooms, which do not know each other → the ground."""
    home = path.parts[0].removesuffix(".py")
    known = _imports(ROOT / "distopt" / path) - {home}
    if home in GROUND | ROOMS:
        assert known <= GROUND
    elif home not in {*ENTRY, "__init__"}:
        assert not known & ENTRY


def _imports(path: Path) -> set[str]:
    """The parts of distopt that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            first, _, rest = node.module.partition(".")
            parts = [rest] if rest else [alias.name for alias in node.names]
            found |= {part.partition(".")[0] for part in parts if first == "distopt"}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("distopt.")}
    return found - {"__version__"}


def test_make_refuses_an_old_python_in_one_message(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.7\nexit 1\n')
    old.chmod(0o755)
    ran = run("make", "train", f"PYTHON={old}", f"VENV={tmp_path}/venv", cwd=ROOT)
    message, *report = ran.stderr.splitlines()
    assert message == f"distopt needs Python 3.11 or newer; {old} is Python 3.9.7: make PYTHON=python3.12 …"
    assert all(line.startswith("make") for line in report)
    assert not (tmp_path / "venv").exists()
