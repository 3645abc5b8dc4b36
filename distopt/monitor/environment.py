"""What a run trains in: its code, versions, hosts and their devices, as plain data and as Markdown."""

from __future__ import annotations

import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from distopt import __version__
from distopt.monitor.groups import collapse

_PATIENCE = 3.0
"""Seconds for git: a start is not to wait for a slow file system."""
_LINES = 20
"""Of the diffstat."""
_PACKAGES = ("numpy", "safetensors", "tensorboard", "torchmetrics", "transformers", "torchvision", "triton")
_VARIABLES = re.compile(
    r"TORCHELASTIC_(RUN_ID|RESTART_COUNT|MAX_RESTARTS)|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR"
    r"|SLURM_(JOB_ID|JOB_NAME|JOB_PARTITION|JOB_NUM_NODES|ARRAY_JOB_ID|ARRAY_TASK_ID|RESTART_COUNT)"
    r"|OMP_NUM_THREADS|MKL_NUM_THREADS|CUDA_VISIBLE_DEVICES|PYTORCH_\w+|(NCCL|TORCH|GLOO|CUBLAS|TORCHINDUCTOR)_\w+"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|KEY(?!S?PACE)")


def this_rank(device: torch.device) -> dict[str, Any]:
    """What all ranks are to know of this one: its host, and its device."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "host": socket.gethostname(),
        "device": _device(device),
        "driver": _driver() if device.type == "cuda" else None,
        "cpus": os.cpu_count(),
        "memory": _gib(pages),
    }


def environment(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of environment.json.

    Args:
        ranks: `this_rank` of each, by rank.
    """
    return {
        "command": shlex.join(sys.orig_argv),
        "directory": str(Path.cwd()),
        "git": git_state(Path.cwd()),
        "system": platform.platform(),
        "versions": _versions(),
        "variables": _variables(os.environ),
        "hosts": hosts(ranks),
    }


def hosts(ranks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each host with its ranks and their devices, in the order of its first rank."""
    found: dict[str, dict[str, Any]] = {}
    for number, rank in enumerate(ranks):
        host = {"ranks": [], "devices": [], **{key: rank[key] for key in ("driver", "cpus", "memory")}}
        host = found.setdefault(rank["host"], host)
        host["ranks"].append(number)
        host["devices"].append(rank["device"])
    return [{"host": name, **host} for name, host in found.items()]


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit, branch and what is changed of a working tree; None where git does not say so in time."""
    try:
        lines = _git(directory, "status", "--porcelain=v2", "--branch").splitlines()
        heads = dict(line.split(" ", 2)[1:] for line in lines if line.startswith("# branch."))
        untracked = sum(line.startswith("?") for line in lines)
        changed = sum(not line.startswith(("#", "?")) for line in lines)
        is_diff = changed and heads["branch.oid"] != "(initial)"
        stat = _git(directory, "diff", "HEAD", "--no-ext-diff", f"--stat=100,70,{_LINES}") if is_diff else ""
    except (OSError, subprocess.SubprocessError):
        return None
    return {
        "commit": heads["branch.oid"],
        "branch": heads["branch.head"],
        "changed": changed,
        "untracked": untracked,
        "diffstat": [line.strip() for line in stat.splitlines()],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The text `run/environment`: what `environment` returned, hosts that are alike in one line."""
    return "\n".join(_markdown(found))


def _markdown(found: Mapping[str, Any]) -> Iterator[str]:
    git = found["git"]
    yield f"`{found['command']}`"  # in a table, a long one would squeeze all else
    yield from _table(
        ("directory", f"`{found['directory']}`"),
        *([("git", _git_line(git))] if git else []),
        ("system", found["system"]),
        ("versions", ", ".join(f"{name} {number}" for name, number in found["versions"].items())),
    )
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for host in found["hosts"]:
        devices = _counted(host["devices"])
        alike.setdefault((devices, host["driver"], host["cpus"], host["memory"]), []).append(host)
    yield from _table(
        ("hosts", "ranks", "devices of each", "driver", "CPUs", "memory"),
        *(
            (
                (f"{len(members)} × " if len(members) > 1 else "")
                + ", ".join(collapse(host["host"] for host in members)),
                ", ".join(_spans([rank for host in members for rank in host["ranks"]])),
                devices,
                driver or "-",
                str(cpus),
                memory,
            )
            for (devices, driver, cpus, memory), members in alike.items()
        ),
    )
    if found["variables"]:
        rows = (
            (f"`{name}`", f"`{value}`" if value else "empty") for name, value in found["variables"].items()
        )
        yield from _table(("variable", "value"), *rows)
    if git and git["diffstat"]:
        yield from ("", "```", *git["diffstat"], "```")


def _table(head: Sequence[str], *rows: Sequence[str]) -> Iterator[str]:
    yield ""
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _git_line(git: Mapping[str, Any]) -> str:
    state = [f"{git[what]} {what}" for what in ("changed", "untracked") if git[what]]
    return f"`{git['commit'][:12]}` on {git['branch']}, {', '.join(state) or 'clean'}"


def _counted(devices: Sequence[str]) -> str:
    return ", ".join(f"{devices.count(device)} × {device}" for device in dict.fromkeys(devices))


def _spans(ranks: Sequence[int]) -> Iterator[str]:
    """`0–7`, `16–23` of the ranks of such hosts."""
    first = last = ranks[0]
    for rank in [*ranks[1:], -1]:
        if rank != last + 1:
            yield str(first) if first == last else f"{first}–{last}"
            first = rank
        last = rank


def _git(directory: Path, *arguments: str) -> str:
    ran = subprocess.run(
        ["git", "--no-optional-locks", "-C", directory, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_PATIENCE,
        check=True,
    )
    return ran.stdout.decode(errors="replace")


def _versions() -> dict[str, str]:
    cuda = torch.version.cuda
    found = {"distopt": __version__, "python": platform.python_version(), "torch": torch.__version__}
    if cuda:
        found |= {"CUDA": cuda, "cuDNN": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    for name in _PACKAGES:
        if name in sys.modules:
            with suppress(PackageNotFoundError):  # a folder of that name
                found[name] = version(name)
    return found


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    names = (name for name in sorted(environ) if _VARIABLES.fullmatch(name) and not _SECRET.search(name))
    return {name: environ[name] for name in names}


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {_gib(properties.total_memory)}"


def _driver() -> str | None:
    """Of the host's GPUs, as Linux says it: there is none without."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else None


def _gib(size: int) -> str:
    return f"{size / 2**30:.0f} GiB"
