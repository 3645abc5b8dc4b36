"""Manifests for Kubernetes: what is rendered from the facts, and which facts pods cannot run with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distopt import load_config
from distopt.cli import main

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "launch/kubernetes"
RUN = ["configs/quickstart.yaml", "work_dir=/runs/quickstart"]
FACTS = ["--image=x/y:1", "--mounts=runs:/runs"]
KINDS = ["kubernetes", "jobset", "trainjob"]


def printed(capsys, *argv: str) -> str:
    assert main(["launch", *argv]) == 0
    return capsys.readouterr().out


def parts(text: str) -> dict[str, Any]:
    """Kind → document."""
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def pod_of(documents: dict[str, Any]) -> dict[str, Any]:
    if "Job" in documents:
        return documents["Job"]["spec"]["template"]["spec"]
    set_spec = (documents.get("JobSet") or documents["TrainingRuntime"]["spec"]["template"])["spec"]
    return set_spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("kind", "name"), [("kubernetes", "indexed-job"), ("jobset", "jobset"), ("trainjob", "trainjob")]
)
def test_the_manifests_of_the_repository_are_those_of_the_facts_beside_them(capsys, kind, name):
    text = printed(capsys, kind, *RUN, "--facts", str(FOLDER / "cluster.yaml"))
    assert text == (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_brings_the_config_along(capsys, kind, tmp_path):
    text = printed(capsys, kind, *RUN, *FACTS, "optimizer.lr=3e-4")
    (tmp_path / "config.yaml").write_text(parts(text)["ConfigMap"]["data"]["config.yaml"])
    assert (
        load_config(tmp_path / "config.yaml").to_dict()
        == load_config(RUN[0], [*RUN[1:], "optimizer.lr=3e-4"]).to_dict()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_has_what_the_facts_say(capsys, kind):
    facts = [
        "--gpus=4",
        "--cpus=16",
        "--memory=64G",
        "--grace=600",
        "--env=NCCL_DEBUG=WARN",
        "--partition=gpu",
    ]
    documents = parts(printed(capsys, kind, *RUN, *FACTS, *facts, "--mounts=data:/data", "--nodes=2"))
    pod = pod_of(documents)
    node = pod["containers"][0]
    assert node["resources"]["limits"] == {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "4"}
    environment = {variable["name"]: variable.get("value") for variable in node["env"]}
    assert environment["NCCL_DEBUG"] == "WARN"
    assert environment["OMP_NUM_THREADS"] == "4"
    assert pod["terminationGracePeriodSeconds"] > int(environment["PET_SHUTDOWN_TIMEOUT"]) == 600
    mounted = {mount["name"]: mount["mountPath"] for mount in node["volumeMounts"]}
    assert mounted == {"config": "/etc/distopt", "shm": "/dev/shm", "mount-0": "/runs", "mount-1": "/data"}
    queued = documents[{"kubernetes": "Job", "jobset": "JobSet", "trainjob": "TrainJob"}[kind]]
    assert queued["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpu"}


def test_kubeflow_alone_says_where_nodes_meet(capsys):
    reserved = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
    for kind in KINDS:
        names = {
            variable["name"]
            for variable in pod_of(parts(printed(capsys, kind, *RUN, *FACTS)))["containers"][0]["env"]
        }
        assert names & reserved == (set() if kind == "trainjob" else reserved)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_yaml_would_take_for_something_else_is_text(capsys, kind):
    documents = parts(printed(capsys, kind, *RUN, *FACTS, "--name=null"))
    assert {document["metadata"]["name"] for document in documents.values()} == {"null"}


def test_ranks_on_the_cpu_ask_for_no_gpu(capsys):
    assert "nvidia.com" not in printed(capsys, "jobset", *RUN, *FACTS, "--gpus=0")


def test_lines_of_shell_run_before_the_node_and_give_it_their_place(capsys):
    text = printed(capsys, "kubernetes", *RUN, *FACTS, "--setup=source /opt/env", "--setup=ulimit -c 0")
    command = pod_of(parts(text))["containers"][0]["command"]
    assert command[:4] == ["bash", "-c", 'set -e\nsource /opt/env\nulimit -c 0\nexec "$@"', "setup"]
    assert command[4:] == ["python3", "-m", "distopt.launch.pod", "/etc/distopt/config.yaml"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (FACTS, "a manifest holds the config: say which"),
        ([*RUN, FACTS[1]], "image: is missing"),
        ([*RUN, FACTS[0]], "work_dir: is on the pod's own disk, which ends with it: no mount covers it"),
        ([RUN[0], *FACTS], "work_dir: is on the pod's own disk"),
        ([*RUN, *FACTS, "--mounts=/data:/data"], "mounts: not of the form"),
        ([*RUN, *FACTS, "--name=My Run"], "name: no name of a Service"),
        ([*RUN, *FACTS, "--memory=64GB"], "memory: no amount"),
        ([*RUN, *FACTS, "--env=PET_NNODES=3"], "--env: env.PET_NNODES: is for the manifest"),
        ([*RUN, *FACTS, "--gpus=5"], "cannot be divided over 5 ranks"),
        ([*RUN, *FACTS, "--grace=60"], "hang_timeout: is longer than the grace period"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_pods_cannot_run_with_is_told_and_nothing_is_printed(capsys, kind, argv, message):
    assert main(["launch", kind, *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
