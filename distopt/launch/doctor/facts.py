"""What is known of a rank and the node that it is on; it travels as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Device:
    """The GPU of a rank."""

    name: str
    uuid: str
    total: int
    """Bytes of memory."""
    free: int
    """Bytes, before this process has allocated any."""
    numa: int | None
    """The NUMA node that it hangs on; None where the system does not tell."""


@dataclass(frozen=True)
class Network:
    """Where a rank is reached."""

    interfaces: Mapping[str, list[str]]
    """Interface → its addresses."""
    towards_master: str
    """The address of this node that faces MASTER_ADDR."""
    gloo: str | None
    """The address that gloo listens at; None where GLOO_SOCKET_IFNAME names no interface of this node."""
    nccl: str | None
    """The same for NCCL; None, too, where it is left to choose."""

    def interface(self, address: str | None) -> str:
        """`eth0 (10.0.0.7)`."""
        name = next((name for name, own in self.interfaces.items() if address in own), None)
        return f"{name} ({address})" if name else str(address or "none")


@dataclass(frozen=True)
class WorkDir:
    """The run directory, or the directory that it would be made in."""

    path: str
    """As it was given, made absolute."""
    found: str
    """Itself where it exists, else the nearest above that does."""
    kind: str
    """Of the file system: nfs4, ext4."""
    free: int
    """Bytes."""
    problem: str | None
    """Why nothing can be written there."""


@dataclass(frozen=True)
class Facts:
    """All of one rank."""

    rank: int
    local_rank: int
    local_world: int
    host: str
    node: str
    """What tells nodes apart: torchrun's number of this one, else the host's name."""
    versions: Mapping[str, str]
    """Of python, torch, distopt, CUDA, NCCL, the driver, as far as there are such."""
    variables: Mapping[str, str]
    """Those of the environment that steer threads, NCCL, gloo and torch.distributed."""
    unread: list[str]
    """Names of such variables that nothing in the installed torch reads."""
    cores: int
    """That this process may use."""
    numa: list[int]
    """NUMA nodes of the machine."""
    bound_to: list[int]
    """Those of them whose cores this process may use."""
    limits: Mapping[str, int | None]
    """`nofile`, `memlock`, `core`: the soft limits; None is unlimited."""
    shm: int
    """Bytes of /dev/shm; 0 where there is none."""
    infiniband: list[str]
    """RDMA devices."""
    devices: int
    """GPUs that this process sees."""
    device: Device | None
    """Its own; None without one, or where `device_problem` says why it cannot be used."""
    device_problem: str | None
    dumps_to: str | None
    """Where the flight recorder would write, where nothing can be written there."""
    network: Network
    work_dir: WorkDir | None
    """None where none was asked about."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Facts:
        device, work_dir = content["device"], content["work_dir"]
        return cls(
            **{
                **content,
                "network": Network(**content["network"]),
                "device": Device(**device) if device else None,
                "work_dir": WorkDir(**work_dir) if work_dir else None,
            }
        )
