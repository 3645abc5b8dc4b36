"""The image of docker/Dockerfile, built and run by buildah, which needs no engine.

Its base is a Debian of debootstrap's: once with a torch in it, as vendors' images are, and once without, as
python:slim is. pip finds inside what it finds outside.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import files, version
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tests.test_packaging import PINS

ROOT = Path(__file__).parents[2]
SUITE = {(3, 11): "bookworm", (3, 13): "trixie"}.get(sys.version_info[:2])
"""The Debian with this version of Python, which wheels and torch are for."""

MISSING = [name for name in ("buildah", "debootstrap") if not shutil.which(name)]
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: buildah runs by chroot"),
    pytest.mark.skipif(SUITE is None, reason="needs a Python that a Debian has"),
]
WITH_TORCH = "a base with torch"


@dataclass
class Image:
    """A built image, and a container of it.

    Args:
        buildah: The command, with its storage.
        mounts: Where the base's torch is, as options.
        config: As `docker inspect` shows it: Entrypoint, Cmd, User, …
        size: With the base, for people.
    """

    buildah: tuple[str, ...]
    mounts: tuple[str, ...]
    config: dict[str, Any]
    size: str

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Starts a command under the image's entrypoint; the first line has the number of that process."""
        container = (
            *self.buildah,
            "run",
            "--isolation=chroot",
            "--env=TINI_SUBREAPER=1",
            *self.mounts,
            "image",
        )
        entrypoint = ("sh", "-c", 'echo $$; exec "$@"', "sh", *self.config["Entrypoint"])
        return subprocess.Popen(
            (*container, "--", *entrypoint, *command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> tuple[int, str]:
        """Exit status of a command, and what it prints."""
        with self.start(*command) as process:
            printed, _ = process.communicate()
        return process.returncode, printed.partition("\n")[2]

    def health(self) -> tuple[int, str]:
        """What HEALTHCHECK says."""
        kind, *command = self.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*command)


@pytest.fixture(scope="module", params=[WITH_TORCH, "a base without"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    storage = tmp_path_factory.mktemp("containers")
    buildah = ("buildah", f"--root={storage}/root", f"--runroot={storage}/run")
    torch = mounts_of_torch() if request.param == WITH_TORCH else ()
    try:
        wheels = make_base(buildah)
        arguments = ["--build-arg=BASE=localhost/base"]
        if wheels:  # they take the place of the index of CPU builds
            arguments.append("--build-arg=TORCH_INDEX=")
        options = ("--isolation=chroot", "--format=docker", "--file=docker/Dockerfile")
        output(*buildah, "build", *arguments, *options, *torch, *wheels, "--tag=localhost/image", ".")
        output(*buildah, "from", "--name=image", "localhost/image")
        inspected = json.loads(output(*buildah, "inspect", "--type=image", "localhost/image"))
        config = inspected["Docker"]["config"]
        size = json.loads(output(*buildah, "images", "--json", "localhost/image"))[0]["size"]
        yield Image(buildah, torch, config, size)
    finally:
        output(*buildah, "rm", "--all")
        shutil.rmtree(storage)


def make_base(buildah: tuple[str, ...]) -> tuple[str, ...]:
    """Makes the image localhost/base; the options that mount the wheels which pip is told of here."""
    output(*buildah, "from", "--name=base", "scratch")
    root = Path(output(*buildah, "mount", "base"))
    debootstrap = ("debootstrap", "--variant=minbase", str(SUITE), root)
    made = subprocess.run(debootstrap, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"debootstrap: {made.stdout.strip().rpartition(chr(10))[2]}")
    settings = pip_settings()
    if certificates := settings.get("cert"):
        shutil.copy(certificates, root / "etc/pip.pem")
        settings["cert"] = "/etc/pip.pem"
    lines = [f"{name} = {value}\n" for name, value in settings.items()]
    (root / "etc/pip.conf").write_text("[global]\n" + "".join(lines))
    # What a vendor's torch brings along: a script that starts the base's Python.
    script = root / "usr/local/bin/torchrun"
    script.write_text("#!/usr/bin/python3\nfrom torch.distributed.run import main\nmain()\n")
    script.chmod(0o755)
    output(*buildah, "commit", "--rm", "base", "localhost/base")
    folders = [folder for folder in settings.get("find-links", "").split() if Path(folder).is_dir()]
    return tuple(f"--volume={folder}:{folder}:ro" for folder in folders)


def pip_settings() -> dict[str, str]:
    """Where pip looks for packages on this machine: option → value."""
    told = [
        line.partition("=") for line in output(sys.executable, "-m", "pip", "config", "list").splitlines()
    ]
    settings = {name.rpartition(".")[2]: value.strip("'") for name, _, value in told}
    return {name: settings[name] for name in ("cert", "index-url", "find-links") if name in settings}


def mounts_of_torch() -> tuple[str, ...]:
    """Options that mount this environment's torch where a vendor's is."""
    if "+cpu" not in version("torch"):
        pytest.skip("needs a torch whose libraries are all its own: a CPU build")
    packages = f"/usr/local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/dist-packages"
    here = Path(str(files("torch")[0].locate())).parents[len(files("torch")[0].parts) - 1]
    names = {file.parts[0] for file in files("torch")} - {".."}
    return tuple(f"--volume={here / name}:{packages}/{name}:ro" for name in names)


def output(*command: str) -> str:
    """What a command prints; a failure fails the test."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip()


def test_the_user_is_not_root(image: Image) -> None:
    print(f"the image with its base: {image.size}")
    assert image.run("id", "-u") == (0, "1000\n")
    assert image.config["User"] == "1000"


def test_the_torch_of_the_base_stays_and_all_else_is_pinned(image: Image) -> None:
    _, listed = image.run("python3", "-m", "pip", "list", "--path", own_packages(image), "--format=json")
    installed = {canonicalize_name(package["name"]): package["version"] for package in json.loads(listed)}
    torch = installed.pop("torch", None)
    assert torch == (None if image.mounts else f"{PINS['torch']}+cpu")
    assert {"pydantic", "tensorboard"} <= set(installed)
    assert not [name for name in installed if name.startswith(("nvidia", "cuda", "triton"))]
    for name in installed.keys() - {"distopt", "pip"}:
        assert installed[name] == PINS[name]


def own_packages(image: Image) -> str:
    return image.run("python3", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")[1].strip()


def test_the_quickstart_trains_inside_and_is_well(image: Image) -> None:
    assert image.health() == (0, "no run yet\n")
    code, printed = image.run(*image.config["Cmd"], "max_steps=20")
    assert code == 0, printed
    assert "finished    step 20" in printed
    assert image.health() == (0, "/workspace/runs/quickstart: done at step 20\n")


def test_a_stop_leaves_a_run_that_the_same_command_continues(image: Image) -> None:
    command = (*image.config["Cmd"], "work_dir=runs/stopped", "max_steps=40", "log.every=1")
    with image.start(*command) as process:
        assert process.stdout
        first = int(process.stdout.readline())
        while not (line := process.stdout.readline()).startswith("step "):
            assert line, "the run ended before its first step"
        os.kill(first, signal.SIGTERM)
        printed = process.stdout.read()
    assert process.returncode == 1, printed  # torchrun's, whatever its ranks' are
    code, said = image.health()
    assert (code, said.split(" at ")[0]) == (0, "/workspace/runs/stopped: preempted")
    code, printed = image.run(*command)
    assert code == 0, printed
    assert "step 40/40" in printed
    assert "step  1/40" not in printed


def test_a_mistake_ends_the_container_with_its_own_status(image: Image) -> None:
    code, printed = image.run(*image.config["Cmd"], "eval.evry=1")
    assert code == 2
    assert "did you mean: every?" in printed
