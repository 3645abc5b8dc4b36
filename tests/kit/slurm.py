"""A Slurm of two nodes on one machine, for tests: real daemons, jobs, signals and losses of nodes.

    with Lab() as lab:
        job = lab.submit("train.sbatch")
        lab.wait(job, "COMPLETED")

Needs root, Debian's slurm-wlm and munge. All of it lives in one network, mount and process namespace, which
goes with the lab: nothing is reached from outside, or left behind. Each node has processes of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import Any, Self

NODES = {"node1": "127.0.0.11", "node2": "127.0.0.12"}
SHARED = Path("/srv")
"""What all nodes see as a file system that they share; outside the lab it is `Lab.shared`."""

_NEEDS = ("slurmctld", "slurmd", "munged", "nsenter", "unshare", "ip")
_OWN_PROCESSES = ("--mount", "--pid", "--mount-proc", "--fork", "--kill-child")


def missing() -> str | None:
    """Why there can be no lab here; None where there can."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [name for name in _NEEDS if shutil.which(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)} (apt-get install slurm-wlm munge)"
    allowed = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=False)
    return "may not make namespaces" if allowed.returncode else None


class Lab:
    """As a context manager it is up within the block."""

    def __enter__(self) -> Self:
        # Munge's socket has a short path, and folders that others cannot write to.
        self.root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/run"))
        self.root.chmod(0o755)
        self.shared = self.root / "shared"
        self.shared.mkdir()
        self._environ = {
            "SLURM_CONF": f"{self.root}/slurm.conf",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
        }
        self._write_configuration()
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        # With 127.0.0.1 alone, no name would be resolved.
        everything = f"""
            ip link set lo up
            {"; ".join(f"ip address add {address}/8 dev lo" for address in NODES.values())}
            mount --bind {self.root}/hosts /etc/hosts
            mount --bind {self.shared} {SHARED}
            touch {self.root}/ready
            exec sleep 3600"""  # after which it ends by itself, should the tests be killed
        self._keeper = subprocess.Popen(
            [*("unshare", "--net", *_OWN_PROCESSES), "sh", "-ec", everything], stdin=subprocess.DEVNULL
        )
        try:
            poll((self.root / "ready").exists, "the namespaces")
            self._init = _child(self._keeper)
            self.run("munged", *self._munge_options())
            self._daemon("controller", "slurmctld", "-c", "-D")
            for name in NODES:
                self.start_node(name)
            poll(lambda: self._idle() == set(NODES), "two idle nodes")
        except BaseException as error:
            error.add_note(self.logs())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.kill()  # and with it every process of its namespaces
        self._keeper.wait()
        for node in self._nodes.values():
            node.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def run(self, *command: str | Path, check: bool = True) -> str:
        """What a command prints that is run on the login node, in the shared folder."""
        done = subprocess.run(
            self._inside(*command),
            env={**os.environ, **self._environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str | Path) -> str:
        """The number of a job that sbatch makes of a script and its arguments."""
        return self.run("sbatch", "--parsable", *arguments).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, Restarts, ExitCode, …"""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, *states: str, timeout: float = 180) -> dict[str, str]:
        """Until a job is in one of the states; what Slurm says of it then."""
        try:
            poll(lambda: self.job(number)["JobState"] in states, f"{number} {states}", timeout)
        except BaseException as error:
            error.add_note(f"{self.job(number)}\n{self.output()}\n{self.logs()}")
            raise
        return self.job(number)

    def output(self) -> str:
        """What the jobs have printed."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.shared.glob("*.log")))

    def logs(self) -> str:
        """The last that the daemons have to say."""
        tails = (path.read_text(errors="replace").splitlines()[-30:] for path in self.root.glob("*.log"))
        return "\n".join(line for tail in tails for line in tail)

    def kill_node(self, name: str) -> None:
        """It is gone at once, with all that ran on it."""
        node = self._nodes.pop(name)
        os.kill(_child(node), signal.SIGKILL)  # that of nsenter is unshare, which takes the node along
        node.wait()

    def start_node(self, name: str) -> None:
        """It comes, or comes back."""
        self._daemon(name, "slurmd", "-D", "-N", name)

    def _daemon(self, name: str, *command: str) -> None:
        # The shell is the namespace's init: it reaps what the daemon's children leave behind.
        script = 'hostname "$0"; "$@" & wait'
        self._nodes[name] = subprocess.Popen(
            self._inside(
                *("unshare", "--uts", *_OWN_PROCESSES),
                *("bash", "-c", script, name, *command, "-f", f"{self.root}/slurm.conf"),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _inside(self, *command: str | Path) -> list[str]:
        enter = ["nsenter", f"--target={self._init}", "--net", "--mount", "--pid", "env", f"--chdir={SHARED}"]
        return [*enter, *map(str, command)]

    def _idle(self) -> set[str]:
        return set(self.run("sinfo", "-hN", "-p", "normal", "-t", "idle", "-o", "%n", check=False).split())

    def _write_configuration(self) -> None:
        template = Path(__file__).with_name("slurm.conf").read_text()
        hosts = {"localhost": "127.0.0.1", "controller": "127.0.0.1", **NODES}
        texts = {
            "slurm.conf": Template(template).substitute(ROOT=self.root),
            "cgroup.conf": "CgroupPlugin=cgroup/v1\n",
            "hosts": "".join(f"{address} {name}\n" for name, address in hosts.items()),
        }
        for name, text in texts.items():
            (self.root / name).write_text(text)
        (self.root / "munge.key").write_bytes(os.urandom(1024))
        (self.root / "munge.key").chmod(0o400)

    def _munge_options(self) -> Iterator[str]:
        yield "--force"
        for option in ("key-file=munge.key", "socket=munge.socket", "pid-file=munged.pid"):
            yield f"--{option.replace('=', f'={self.root}/')}"
        yield f"--log-file={self.root}/munged.log"
        yield f"--seed-file={self.root}/munge.seed"


def _child(process: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def poll(condition: Callable[[], Any], what: str, timeout: float = 60) -> None:
    """Asks again and again until it is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not after {timeout:g} s"
        time.sleep(0.05)  # the processes that are watched need the processor
