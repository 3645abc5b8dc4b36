"""Kubernetes: manifests of three kinds, for clusters with nothing, with JobSet, and with Kubeflow Trainer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import PurePosixPath
from string import Template

from distopt.config import Config, load_config
from distopt.errors import ConfigError, raise_all
from distopt.launch.checks import located
from distopt.launch.job import Job

_LABEL = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"
"""Names of Services and pods, with room for what is put behind them."""
_CLAIM = re.compile(r"(?P<claim>[a-z0-9]([-.a-z0-9]*[a-z0-9])?):(?P<target>/[^:\s]*)")
_PORT = 29500
_RENDEZVOUS = ("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")
_CONFIG = "/etc/distopt/config.yaml"
_CONTAINERS_OWN = 30
"""Seconds that torchrun and the kubelet need beside those of the ranks."""


def indexed_job(job: Job, arguments: Sequence[str]) -> str:
    """An Indexed Job and a headless Service: any cluster has them."""
    config = _checked(job, arguments)
    pod = _pod(job, _rendezvous(job, f"{job.name}-0.{job.name}"))
    return _manifest("indexed-job.yaml", job, config, pod=pod)


def jobset(job: Job, arguments: Sequence[str]) -> str:
    """A JobSet: all nodes start again together."""
    config = _checked(job, arguments)
    pod = _pod(job, _rendezvous(job, f"{job.name}-node-0-0.{job.name}"))
    return _manifest("jobset.yaml", job, config, jobset=_fill("jobset-spec.yaml", _facts(job, pod=pod)))


def trainjob(job: Job, arguments: Sequence[str]) -> str:
    """Kubeflow Trainer's TrainJob, with its TrainingRuntime."""
    config = _checked(job, arguments)
    labels = "metadata:\n  labels: {trainer.kubeflow.org/trainjob-ancestor-step: trainer}"
    spec = _fill("jobset-spec.yaml", _facts(job, pod=_pod(job, []), labels=labels))
    return _manifest("trainjob.yaml", job, config, jobset=spec)


def _manifest(body: str, job: Job, config: Config, **blocks: str) -> str:
    facts = _facts(job, config=config.to_yaml(), **blocks)
    return _fill("config.yaml", facts) + _fill(body, facts)


def _facts(job: Job, **blocks: str) -> dict[str, str]:
    """What the bodies have places for; a block that has nothing leaves no line."""
    return {
        "name": job.name,
        "nodes": str(job.nodes),
        "ranks": str(job.ranks_per_node),
        "requeues": str(job.requeues),
        "queue": f"labels: {{kueue.x-k8s.io/queue-name: {_text(job.partition)}}}" if job.partition else "",
        "labels": "",
        **blocks,
    }


def _rendezvous(job: Job, first: str) -> list[str]:
    """The static one of torchrun: rank 0 is on the first node. Its other variables are those of all kinds."""
    index = "{fieldRef: {fieldPath: \"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}}"
    return [
        _variable("PET_NNODES", str(job.nodes)),
        _variable("PET_NPROC_PER_NODE", str(job.ranks_per_node)),
        f"- {{name: PET_NODE_RANK, valueFrom: {index}}}",
        _variable("PET_MASTER_ADDR", first),
        _variable("PET_MASTER_PORT", str(_PORT)),
    ]


def _pod(job: Job, rendezvous: Sequence[str]) -> str:
    """The spec of a pod."""
    train = ["python3", "-m", "distopt.launch.pod", _CONFIG]
    lines = "\n".join(["set -e", *job.setup, 'exec "$@"'])
    environment = {
        "PET_SHUTDOWN_TIMEOUT": str(job.grace),
        "PET_RDZV_CONF": "timeout=86400",  # the cluster may have no room for the other nodes yet
        "OMP_NUM_THREADS": str(max(1, (job.cpus or 0) // job.ranks_per_node)),
        **job.env,
    }
    mounts = [_claim(mount) for mount in job.mounts]
    facts = {
        "name": job.name,
        "image": _text(job.image),
        "termination": str(job.grace + _CONTAINERS_OWN),
        "tolerations": "tolerations: [{key: nvidia.com/gpu, operator: Exists}]" if job.gpus else "",
        "command": _text(["bash", "-c", lines, "setup", *train] if job.setup else train),
        "env": "\n".join([*rendezvous, *(_variable(*pair) for pair in environment.items())]),
        "resources": _text(_resources(job)),
        "mounts": "\n".join(
            f"- {{name: mount-{i}, mountPath: {_text(target)}}}" for i, (_, target) in enumerate(mounts)
        ),
        "claims": "\n".join(
            f"- name: mount-{i}\n  persistentVolumeClaim: {{claimName: {_text(claim)}}}"
            for i, (claim, _) in enumerate(mounts)
        ),
    }
    return _fill("pod.yaml", facts)


def _resources(job: Job) -> dict[str, dict[str, str]]:
    """Requests are the limits: a node shares nothing."""
    limits = {
        "cpu": str(job.cpus) if job.cpus else None,
        "memory": _quantity(job.memory) if job.memory else None,
        "nvidia.com/gpu": str(job.gpus) if job.gpus else None,
    }
    given = {name: limit for name, limit in limits.items() if limit}
    return {"requests": given, "limits": given} if given else {}


def _checked(job: Job, arguments: Sequence[str]) -> Config:
    """The config of a job that pods can run.

    Raises:
        ConfigError: All that is wrong or missing.
    """
    if not arguments:
        raise ConfigError(
            "", "a manifest holds the config: say which", allowed="distopt launch KIND cfg.yaml"
        )
    config = load_config(arguments[0], arguments[1:])
    raise_all(located(error, job, config) for error in _mistakes(job, config))
    return config


def _mistakes(job: Job, config: Config) -> Iterator[ConfigError]:
    if job.image is None:
        yield ConfigError("image", "is missing: pods run in one", allowed="--image REGISTRY/NAME:TAG")
    if not re.fullmatch(_LABEL, job.name):
        allowed = "at most 40 of a-z, 0-9 and -, a letter first"
        yield ConfigError("name", "no name of a Service", given=job.name, allowed=allowed)
    for name in job.env.keys() & _RENDEZVOUS:
        yield ConfigError(f"env.{name}", "is for the manifest, or Kubeflow, to set: it says where nodes meet")
    malformed = [mount for mount in job.mounts if not _CLAIM.fullmatch(mount)]
    for mount in malformed:
        yield ConfigError("mounts", "not of the form", given=mount, allowed="CLAIM:/TARGET")
    targets = [_claim(mount)[1] for mount in job.mounts if mount not in malformed]
    if not any(PurePosixPath(config.work_dir).is_relative_to(target) for target in targets):
        problem = "is on the pod's own disk, which ends with it: no mount covers it"
        allowed = f"below {' or '.join(targets)}" if targets else "below the target of --mounts CLAIM:/TARGET"
        yield ConfigError("work_dir", problem, given=str(config.work_dir), allowed=allowed)


def _claim(mount: str) -> tuple[str, str]:
    """Name of the PersistentVolumeClaim, and where it is mounted."""
    claim, _, target = mount.partition(":")
    return claim, target


def _quantity(memory: str) -> str:
    """Slurm's 64G, and its megabytes, are powers of two."""
    return f"{memory}{'M' if memory.isdecimal() else ''}i"


def _variable(name: str, value: str) -> str:
    return f"- {{name: {name}, value: {_text(value)}}}"


def _text(value: object) -> str:
    """As YAML, on one line: JSON is some."""
    return json.dumps(value, ensure_ascii=False)


def _fill(body: str, facts: Mapping[str, str]) -> str:
    """The text of a body; a fact that is alone on its line is a block, with as much before each line."""
    text = files("distopt.launch").joinpath("bodies", body).read_text(encoding="utf-8")
    lines: list[str] = []
    for line in text.splitlines():
        alone = re.fullmatch(r"( *)\$\{?(\w+)\}?", line)
        if alone:
            lines += [f"{alone[1]}{inner}".rstrip() for inner in facts[alone[2]].splitlines()]
        else:
            lines.append(Template(line).substitute(facts))
    return "\n".join(lines) + "\n"
