"""What is odd about the facts of one rank, whatever the others have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from distopt.launch.doctor.facts import Facts
from distopt.launch.doctor.finding import Weight

FAULT, ODD, NOTE = Weight

Remark = tuple[Weight, str]

GIB: Final = 2**30

_SLOW: Final = {
    "NCCL_P2P_DISABLE": "GPUs of a node do not copy to one another directly",
    "NCCL_SHM_DISABLE": "GPUs of a node do not meet in shared memory",
    "NCCL_IB_DISABLE": "nodes talk TCP, though there may be InfiniBand",
    "CUDA_LAUNCH_BLOCKING": "the host waits for every kernel: for debugging only",
    "TORCH_NCCL_BLOCKING_WAIT": "the host waits for every collective: for debugging only",
    "TORCH_NCCL_DESYNC_DEBUG": "every collective is written down: for debugging only",
}
"""Variables that make training slower, where they are set to 1."""


@dataclass(frozen=True)
class Context:
    """What is known of the job."""

    hosts: int
    """Machines, by their names."""
    size: int
    """Ranks in all."""
    workers: int = 0
    """`data.num_workers`."""


def remarks(facts: Facts, context: Context) -> Iterator[Remark]:
    """Each with what to do about it; the same text on ranks that are alike."""
    yield from _network(facts, context)
    yield from _devices(facts)
    yield from _work_dir(facts)
    yield from _memory(facts, context)
    yield from _variables(facts)
    yield from _cores(facts)
    yield from _limits(facts)


def _network(facts: Facts, context: Context) -> Iterator[Remark]:
    network, variables = facts.network, facts.variables
    names = ", ".join(network.interfaces)
    for name, address in (("GLOO_SOCKET_IFNAME", network.gloo), ("NCCL_SOCKET_IFNAME", network.nccl)):
        if name in variables and address is None:
            yield FAULT, f"{name}={variables[name]}: there is no such interface; there are {names}"
    if context.hosts > 1 and network.gloo and ip_address(network.gloo).is_loopback:
        way = network.interface(network.towards_master).partition(" ")[0]
        yield (
            FAULT,
            f"gloo listens at {network.gloo}, which no other node can reach: the host's name stands for it, "
            f"perhaps in /etc/hosts; export GLOO_SOCKET_IFNAME={way}",
        )


def _devices(facts: Facts) -> Iterator[Remark]:
    if facts.device_problem:
        yield FAULT, facts.device_problem
    if (device := facts.device) is None:
        return
    taken = device.total - device.free
    if taken > 2 * GIB:
        yield ODD, f"of the GPU's memory {_gib(taken)} are taken already: by another process (nvidia-smi)"
    if "MIG" in device.name:
        yield NOTE, "a MIG slice: NCCL does not connect two slices of one GPU"
    if facts.bound_to != facts.numa and device.numa is not None and device.numa not in facts.bound_to:
        yield ODD, "bound to the cores of another NUMA node than its GPU's: torchrun --numa-binding=node"
    elif len(facts.numa) > 1 and facts.bound_to == facts.numa:
        yield NOTE, "not bound to the NUMA node of its GPU: torchrun --numa-binding=node"
    if facts.devices > facts.local_world:
        yield NOTE, f"{facts.local_world} ranks on a node with {facts.devices} GPUs"


def _work_dir(facts: Facts) -> Iterator[Remark]:
    if (work_dir := facts.work_dir) is None:
        return
    if work_dir.problem:
        yield FAULT, f"work_dir: nothing can be written in {work_dir.found}: {work_dir.problem}"
    elif work_dir.free < 10 * GIB:
        weight = ODD if work_dir.free < GIB else NOTE
        yield weight, f"work_dir: less than {1 if weight == ODD else 10} GiB are free, for all checkpoints"


def _memory(facts: Facts, context: Context) -> Iterator[Remark]:
    needs = [f"data.num_workers {context.workers}"] * (context.workers > 0)
    needs += ["NCCL"] * (facts.device is not None and facts.local_world > 1)
    if needs and facts.shm < GIB:
        yield (
            ODD,
            f"/dev/shm has {facts.shm / 2**20:,.0f} MiB, and what needs it is {' and '.join(needs)}: "
            "docker --shm-size=16g; on Kubernetes an emptyDir with medium: Memory",
        )


def _variables(facts: Facts) -> Iterator[Remark]:
    variables = facts.variables
    for name in facts.unread:
        yield ODD, f"{name} is set, and nothing in torch {facts.versions['torch']} reads it"
    for name, why in _SLOW.items():
        if variables.get(name) == "1":
            yield NOTE if name.startswith("NCCL_") else ODD, f"{name}=1: {why}"
    if variables.get("TORCH_NCCL_ASYNC_ERROR_HANDLING") == "0":
        yield ODD, "TORCH_NCCL_ASYNC_ERROR_HANDLING=0: a collective that fails leaves the ranks hanging"
    if variables.get("TORCH_DISTRIBUTED_DEBUG") == "DETAIL":
        yield ODD, "TORCH_DISTRIBUTED_DEBUG=DETAIL: each collective is checked by another: for debugging only"
    if variables.get("NCCL_DEBUG") in ("INFO", "TRACE"):
        yield NOTE, f"NCCL_DEBUG={variables['NCCL_DEBUG']}: every rank writes much; WARN says what fails"
    recorder = variables.get("TORCH_FR_BUFFER_SIZE", variables.get("TORCH_NCCL_TRACE_BUFFER_SIZE"))
    if recorder == "0":
        yield NOTE, "the flight recorder is off: after a hang nobody knows which collective it was"
    elif (
        facts.device and not {"TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"} & variables.keys()
    ):
        yield (
            NOTE,
            "the flight recorder's dumps stay on a node: TORCH_FR_DUMP_TEMP_FILE=<work_dir>/logs/nccl_rank",
        )
    if facts.dumps_to:
        yield (
            ODD,
            f"the flight recorder cannot write {facts.dumps_to}: there is no such directory to write in",
        )


def _cores(facts: Facts) -> Iterator[Remark]:
    threads = facts.variables.get("OMP_NUM_THREADS", "")
    share = facts.cores // facts.local_world if facts.bound_to == facts.numa else facts.cores
    if threads.isdigit() and int(threads) > max(1, share):
        yield (
            ODD,
            f"OMP_NUM_THREADS={threads} for each of {facts.local_world} ranks on {facts.cores} cores: they "
            f"wait for one another; export OMP_NUM_THREADS={max(1, share)}",
        )
    elif facts.local_world > facts.cores:
        yield NOTE, f"{facts.local_world} ranks on {facts.cores} cores"
    elif threads == "1" and share >= 4:
        yield (
            NOTE,
            f"OMP_NUM_THREADS=1, torchrun's default, with {share} cores a rank: what runs on the CPU is slow",
        )


def _limits(facts: Facts) -> Iterator[Remark]:
    files, locked, core = (facts.limits[name] for name in ("nofile", "memlock", "core"))
    if facts.infiniband and locked is not None:
        yield ODD, f"ulimit -l {locked // 2**10} KiB: InfiniBand needs memory that stays; ulimit -l unlimited"
    if files is not None and files < 4096:
        yield NOTE, f"ulimit -n {files}: loader workers and many ranks need more files; ulimit -n 65536"
    if core is None:
        yield NOTE, "ulimit -c unlimited: a rank that crashes writes all of its memory to disk"


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"
