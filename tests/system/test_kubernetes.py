"""The manifests, held against the schemas of Kubernetes and the models of Kubeflow Trainer and JobSet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distopt.cli import main

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "launch/kubernetes").glob("*[!r].yaml"))
MODELS = {
    "Job": "IoK8sApiBatchV1Job",
    "Service": "IoK8sApiCoreV1Service",
    "ConfigMap": "IoK8sApiCoreV1ConfigMap",
    "JobSet": "JobsetV1alpha2JobSet",
    "TrainJob": "TrainerV1alpha1TrainJob",
    "TrainingRuntime": "TrainerV1alpha1TrainingRuntime",
}
KNOWN_TO_KUBERNETES = ("Job", "Service", "ConfigMap")
# The models check types and drop what they do not know: a key that is lost was misspelt.
CHECK = """
import json, sys, kubeflow_trainer_api.models as models
for name, given in json.load(sys.stdin):
    kept = getattr(models, name).from_dict(given).to_dict()
    stack = [("", given, kept)]
    while stack:
        path, given, kept = stack.pop()
        if isinstance(given, dict):
            lost = given.keys() - kept.keys()
            assert not lost, f"{path}: unknown: {sorted(lost)}"
            stack += [(f"{path}.{key}", value, kept[key]) for key, value in given.items()]
        elif isinstance(given, list):
            assert len(given) == len(kept), path
            stack += [(f"{path}.{i}", *pair) for i, pair in enumerate(zip(given, kept))]
        else:
            assert given == kept, f"{path}: {given} became {kept}"
"""


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment of their own, since their requirements are not ours."""
    environment = tmp_path_factory.mktemp("kubernetes")
    packages = ["kubernetes-validate==1.37.0", "kubeflow-trainer-api==2.3.0"]
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin/python", "-m", "pip", "install", "-q", *packages]
    installed = subprocess.run(pip, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"cannot install {packages}: {installed.stderr.strip().splitlines()[-1]}")
    return environment / "bin"


def problems(tools: Path, text: str, folder: Path) -> str:
    """What the schemas and the models find; nothing where all is well."""
    found = ""
    documents = list(yaml.safe_load_all(text))
    for i, document in enumerate(documents):
        if document["kind"] in KNOWN_TO_KUBERNETES:
            file = folder / f"{i}.yaml"
            file.write_text(yaml.safe_dump(document))
            validate = [tools / "kubernetes-validate", "--strict", "-k", "1.37.0", file]
            ended = subprocess.run(validate, capture_output=True, text=True, check=False)
            if ended.returncode or "find schema" in ended.stdout + ended.stderr:
                found += ended.stdout + ended.stderr
    pairs = json.dumps([(MODELS[document["kind"]], document) for document in documents])
    check = [tools / "python", "-c", CHECK]
    ended = subprocess.run(check, input=pairs, capture_output=True, text=True, check=False)
    return found + (ended.stderr if ended.returncode else "")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_manifests_of_the_repository_are_valid(tools, path, tmp_path):
    assert problems(tools, path.read_text(), tmp_path) == ""


@pytest.mark.parametrize("kind", ["kubernetes", "jobset", "trainjob"])
def test_manifests_with_all_facts_are_valid(tools, kind, tmp_path, capsys):
    facts = ["--image=x/y:1", "--mounts=runs:/runs", "--mounts=data:/data", "--partition=gpu", "--memory=64G"]
    more = ['--env=A=it\'s: "$B" # ${C}', "--setup=source /opt/env", "--name=one", "--gpus=0", "--ranks=1"]
    assert main(["launch", kind, "configs/quickstart.yaml", "work_dir=/runs/x", *facts, *more]) == 0
    assert problems(tools, capsys.readouterr().out, tmp_path) == ""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("terminationGracePeriodSeconds", "terminationGraceSeconds"),
        ("podFailurePolicy", "podFailPolicy"),
        ("completions: 2", "completions: two"),
    ],
)
def test_a_key_that_is_misspelt_or_has_a_wrong_type_is_found(tools, path, right, wrong, tmp_path):
    text = path.read_text()
    assert right in text
    assert problems(tools, text.replace(right, wrong), tmp_path) != ""
