"""The quickstart as a user runs it: real torchrun, the whole length, and eight ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.kit import run_torchrun
from tests.kit.browser import CHROMIUM, Browser, tensorboard
from tests.runs import losses, rows, status

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> tuple[Path, str]:
    """The run directory of the whole quickstart under ddp, and what it printed."""
    run = tmp_path_factory.mktemp("quickstart") / "run"
    done = run_torchrun([QUICKSTART, f"work_dir={run}"], timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return run, done.stdout


def few_steps(run: Path, nproc: int, *overrides: str) -> list[float]:
    done = run_torchrun(
        [QUICKSTART, f"work_dir={run}", "max_steps=12", "log.every=1", "eval.every=12", *overrides],
        nproc=nproc,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(run)


def test_it_ends_well_below_a_bigram_model_and_says_so(quickstart):
    run, printed = quickstart
    evaluation = rows(run, "eval")[-1]["eval"]["loss"]
    bigram = float(re.search(r"below bigram (\d\.\d+)", printed)[1])
    assert evaluation < bigram - 0.4
    assert evaluation < 1.98
    assert status(run)["state"] == "done"


def test_its_output_is_for_people(quickstart):
    run, printed = quickstart
    assert "embedding.weight = head.weight" in printed
    assert re.search(r"^default +\d+ ", printed, re.M)
    assert re.search(r"step +10/\d+  loss \d\.\d+  lr \S+ +\S+ ms/step  \S+ tokens/s  eta \d", printed)
    assert f"--logdir {run}" in printed
    assert "\x1b" not in printed


def test_every_group_has_its_curve_on_the_page(quickstart, tmp_path):
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    run, _ = quickstart
    groups = [group["name"] for group in json.loads((run / "plan.json").read_text())["groups"]]
    assert groups == ["embedding", "default", "norm", "bias"]
    with tensorboard(run) as url, Browser() as browser:
        for quantity in ("lr", "wd"):
            tags = [f"{quantity}/{group}" for group in groups]
            browser.read(f"{url}?tagFilter={quantity}%2F#timeseries", *tags)
        browser.screenshot(tmp_path / "page.png")


def test_fsdp_is_one_changed_line_and_the_same_losses(quickstart, tmp_path):
    ddp = few_steps(tmp_path / "ddp", 2)
    assert few_steps(tmp_path / "fsdp", 2, "strategy=fsdp") == pytest.approx(ddp, rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_eight_ranks_draw_the_curves_of_two(tmp_path, strategy):
    two = few_steps(tmp_path / "two", 2, f"strategy={strategy}")
    assert few_steps(tmp_path / "eight", 8, f"strategy={strategy}") == pytest.approx(two, rel=1e-4)
