"""What one rank finds out by itself."""

from __future__ import annotations

import os
import platform
import re
import resource
import socket
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from distopt import __version__
from distopt.launch.doctor.directory import probe_work_dir
from distopt.launch.doctor.facts import Device, Facts
from distopt.launch.doctor.network import probe_network

_PREFIXES: Final = ("NCCL_", "TORCH_NCCL_", "TORCH_FR_", "TORCH_GLOO_", "GLOO_", "FI_", "UCX_")
_NAMES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_CPP_LOG_LEVEL",
    "TORCH_DISTRIBUTED_DEBUG",
    "TORCH_SHOW_CPP_STACKTRACES",
)
"""Of variables that steer what is looked at here, and are to be the same on all ranks."""

_NODES: Final = Path("/sys/devices/system/node")


def probe(work_dir: Path | None) -> Facts:
    """The facts of this rank.

    Args:
        work_dir: The run directory to look at.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    host = socket.gethostname()
    device, problem = _device(local_rank)
    variables = _variables()
    nodes = {int(path.name[4:]): _numbers(path / "cpulist") for path in _NODES.glob("node[0-9]*")}
    numa = {node: cores for node, cores in nodes.items() if cores}  # the memory of a GPU can be one, too
    own = os.sched_getaffinity(0)
    rdma = Path("/sys/class/infiniband")
    return Facts(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=local_rank,
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        host=host,
        node=os.environ.get("GROUP_RANK", host),
        versions=_versions(),
        variables=variables,
        unread=_unread(variables) if local_rank == 0 else [],
        cores=_cores(len(own)),
        numa=sorted(numa),
        bound_to=sorted(node for node, cores in numa.items() if cores & own),
        limits={
            name: _limit(getattr(resource, f"RLIMIT_{name.upper()}"))
            for name in ("nofile", "memlock", "core")
        },
        shm=_size("/dev/shm"),
        infiniband=sorted(path.name for path in rdma.iterdir()) if rdma.exists() else [],
        devices=torch.cuda.device_count(),
        device=device,
        device_problem=problem,
        dumps_to=_unwritable_dumps(variables, work_dir),
        network=probe_network(),
        work_dir=probe_work_dir(work_dir) if work_dir else None,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "distopt": __version__}
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    if dist.is_nccl_available():
        found["NCCL"] = ".".join(
            map(
                str,
                torch.cuda.nccl.version(),  # type: ignore[no-untyped-call]
            )
        )
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists() and (number := re.search(r"\s(\d+\.\d+[.\d]*)\s", driver.read_text())):
        found["driver"] = number[1]
    return found


def _variables() -> dict[str, str]:
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES) or name in _NAMES
    }


def _unread(variables: dict[str, str]) -> list[str]:
    """Names that no library of torch's contains: a slip, or of another version."""
    names = [name for name in variables if name.startswith(("TORCH_NCCL_", "TORCH_FR_"))]
    if not dist.is_nccl_available():  # nor does a build for the CPU contain the right ones
        return []
    for library in (Path(torch.__file__).parent / "lib").glob("libtorch_c*.so"):
        if names:
            with library.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                names = [name for name in names if content.find(name.encode()) < 0]
    return names


def _unwritable_dumps(variables: dict[str, str], work_dir: Path | None) -> str | None:
    """The flight recorder's file, where its directory is none that it, or a run, can write in."""
    path = variables.get("TORCH_FR_DUMP_TEMP_FILE") or variables.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
    if not path or (work_dir and Path(path).absolute().is_relative_to(work_dir.absolute())):
        return None  # a run makes its own directories
    return None if os.access(Path(path).absolute().parent, os.W_OK) else path


def _device(local_rank: int) -> tuple[Device | None, str | None]:
    """This rank's GPU, or why it has none where it should."""
    count = torch.cuda.device_count()
    if count == 0:
        built = torch.version.cuda and Path("/proc/driver/nvidia").exists()
        return (
            None,
            f"torch for CUDA {torch.version.cuda} finds no usable GPU, though there is a driver"
            if built
            else None,
        )
    if local_rank >= count:
        return None, f"there is no GPU for local rank {local_rank}: {count} can be seen"
    try:
        free, total = torch.cuda.mem_get_info(local_rank)
        properties = torch.cuda.get_device_properties(local_rank)
    except RuntimeError as error:
        return None, f"the GPU cannot be used: {str(error).splitlines()[0]}"
    bus = "{:04x}:{:02x}:{:02x}.0".format(
        *(getattr(properties, f"pci_{part}_id", 0) for part in ("domain", "bus", "device"))
    )
    numa = Path(f"/sys/bus/pci/devices/{bus}/numa_node")
    node = int(numa.read_text()) if numa.exists() else -1
    return Device(properties.name, str(properties.uuid), total, free, node if node >= 0 else None), None


def _cores(allowed: int) -> int:
    """As many as the process may run on, and its container may keep busy."""
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        most, period = quota.read_text().split()
        if most != "max":
            return max(1, min(allowed, int(most) // int(period)))
    return allowed


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _size(path: str) -> int:
    if not Path(path).exists():
        return 0
    found = os.statvfs(path)
    return found.f_frsize * found.f_blocks


def _numbers(path: Path) -> set[int]:
    """`0-3,8` as a set."""
    ranges = (part.split("-") for part in path.read_text().strip().split(",") if part)
    return {number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)}
