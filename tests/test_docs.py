"""Every example in the documentation runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distopt.config import Config, OptimizerConfig, load_config, validate
from distopt.schedule import check_schedule
from tests.configs import MINIMAL
from tests.kit import run_torchrun

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples(language: str) -> list:
    return [
        pytest.param(block, id=f"{page.stem}-{i}")
        for page in PAGES
        for i, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S))
    ]


@pytest.mark.parametrize("code", examples("python"))
def test_python_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


@pytest.mark.slow
@pytest.mark.parametrize("code", examples("python torchrun"))
def test_examples_under_torchrun_run(code, tmp_path):
    script = tmp_path / "example.py"
    # Left to itself, Python may end while a thread of gloo's still asks for the GIL: the process aborts.
    script.write_text(f"{code}\nimport os\nos._exit(0)\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*torchrun, "--nproc_per_node=2", script], env=environ, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("text", examples("yaml"))
def test_yaml_examples_are_valid(text, tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(text)
    if "model" in yaml.safe_load(text):
        load_config(path)
        return
    assert all(yaml.load(text, yaml.BaseLoader).values())
    fragment = load_fragment(text)
    others = {key: value for key, value in fragment.items() if key not in ("optimizer", "param_scheduler")}
    validate(Config, {**load_fragment(MINIMAL), "work_dir": "run", **others})
    if "optimizer" in fragment:
        validate(OptimizerConfig, fragment["optimizer"], key="optimizer")
    if "param_scheduler" in fragment:
        check_schedule(fragment["param_scheduler"], steps_per_epoch=10, max_steps=1000)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["strategies", "compile", "ema"])
def test_the_config_of_a_page_trains(page, tmp_path):
    text = re.search(r"^```yaml\n(.*?)^```", (ROOT / f"docs/{page}.md").read_text(), re.M | re.S)[1]
    (tmp_path / "cfg.yaml").write_text(text)
    short = [f"data.{split}.limit=64" for split in ("train", "val") if f"{split}:" in text]
    run = run_torchrun(["cfg.yaml", "max_steps=2", *short], cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr


def load_fragment(text: str) -> dict:
    from distopt.config.document import parse

    data, _ = parse(text, "example")
    return data
