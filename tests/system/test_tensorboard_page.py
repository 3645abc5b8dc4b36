"""What TensorBoard shows of runs with 3 and with 30 groups, seen in a real browser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
import torch

from distopt.monitor import Monitor, Session, environment, open_console
from distopt.schedule import build_schedule, overview
from tests.kit.browser import CHROMIUM, Browser, tensorboard

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.timeout(300),
]

STEPS = 400
FEW = ("default", "norm", "head.bias")
MANY = tuple(f"backbone.layer_{i:02}.{kind}" for i in range(15) for kind in ("decay", "no_decay"))
SCHEDULE = [
    {"type": "LinearLR", "by_epoch": False, "start_factor": 0.1, "end": 40},
    {"type": "CosineAnnealingLR", "by_epoch": False, "begin": 40, "eta_min_ratio": 0.1},
]


def write_run(directory: Path, names: Sequence[str], lr: float) -> None:
    """What a run of 512 ranks writes, with rows of its own making."""
    groups = [
        {
            "name": name,
            "rules": ["layerwise"],
            "options": {"lr": lr * 0.9**i, "weight_decay": 0.1 * (i % 2)},
            "why": {"lr": f"{lr} × 0.9 ** {i} (layer_decay) = {lr * 0.9**i:.3g}"},
            "params": [
                {"fqn": f"backbone.blocks.{i}.{part}.weight", "aliases": [], "shape": [64, 64], "numel": 4096}
                for part in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
            ],
        }
        for i, name in enumerate(names)
    ]
    optimizer = torch.optim.AdamW(
        [{"params": [torch.zeros(1)], "name": group["name"], **group["options"]} for group in groups]
    )
    schedule = build_schedule(optimizer, SCHEDULE, max_steps=STEPS)
    mine = environment.this_rank(torch.device("cpu")) | {"device": "NVIDIA H100 80GB HBM3, 79 GiB"}
    surroundings = environment.environment([{**mine, "host": f"node{rank // 8:02}"} for rank in range(512)])
    session = Session(directory / "tensorboard", {"optimizer.lr": lr, "data.batch_size": 64})
    with Monitor(
        directory,
        open_console(0),
        rank=0,
        first_step=0,
        last_step=STEPS,
        groups=groups,
        config=f"optimizer:\n  lr: {lr}",
    ) as monitor:
        monitor.describe(
            {
                "run/environment": environment.markdown(surroundings),
                "run/schedule": overview(schedule, optimizer, STEPS),
            }
        )
        for step in range(5, STEPS + 1, 5):
            schedule.apply(step - 1)
            loss = 0.5 + 3 * math.exp(-step * lr)
            options = {
                key: {group["name"]: group[key] for group in optimizer.param_groups}
                for key in ("lr", "weight_decay")
            }
            perf = {"step_time": 0.02, "samples_per_second": 3200.0}
            monitor.log(
                {"step": step, "epoch": 0, "loss": loss, **options, "grad_norm": 1 / loss, "perf": perf}
            )
            if step % 100 == 0:
                monitor.log({"step": step, "epoch": 0, "eval": {"loss": loss}, "best": {"loss": loss}})
    session.end(succeeded=True)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs / "few", FEW, lr=0.01)
    write_run(runs / "many", MANY, lr=0.03)
    with tensorboard(runs) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(height=2400) as page:  # charts below the window are not drawn
        yield page


def see(browser: Browser, folder: Path, name: str) -> None:
    browser.screenshot(folder / f"{name}.png")
    assert (folder / f"{name}.png").stat().st_size > 10_000


FILTER = f"lr/({'|'.join(FEW)})"


@pytest.mark.parametrize(
    "page", [f"?tagFilter={FILTER}#timeseries", f"#scalars&tagFilter={quote(FILTER, safe='')}"]
)
def test_a_tab_has_a_chart_for_each_of_a_few_groups(
    page: str, url: str, browser: Browser, tmp_path: Path
) -> None:
    browser.read(f"{url}{page}", *(f"lr/{group}" for group in FEW))
    see(browser, tmp_path, "few")


@pytest.mark.parametrize("group", [MANY[0], MANY[-1]])
def test_a_group_of_many_is_found_by_its_name(group: str, url: str, browser: Browser, tmp_path: Path) -> None:
    """The page has 12 charts at a time."""
    browser.read(f"{url}?tagFilter={group}#timeseries", f"lr/{group}", f"wd/{group}")
    see(browser, tmp_path, group)


def test_the_custom_charts_have_every_group(url: str, browser: Browser, tmp_path: Path) -> None:
    browser.read(f"{url}#timeseries", "best/loss")  # and away from it, while it still loads
    tags = (f"lr/{group}" for group in (*FEW, *MANY))
    browser.read(f"{url}#custom_scalars", "optimizer", "loss", "Matches (", *tags)
    see(browser, tmp_path, "custom_scalars")
    browser.click(".toggle-matches-button")
    see(browser, tmp_path, "matches")


def test_the_texts_say_what_the_run_is(url: str, browser: Browser, tmp_path: Path) -> None:
    hosts = ("64 × node{00-63}", "0–511", "8 × NVIDIA H100 80GB HBM3, 79 GiB")
    groups = (MANY[-1], "0.03 × 0.9 ** 29 (layer_decay) = 0.00141", "backbone.blocks.29.mlp.up.weight")
    tags = ("run/config", "run/environment", "run/groups", "run/schedule")
    browser.read(f"{url}#text", *tags, *hosts, *groups, "step 400", "0.001413")
    see(browser, tmp_path, "text")


def test_runs_are_compared_by_what_differs_and_by_their_losses(
    url: str, browser: Browser, tmp_path: Path
) -> None:
    browser.read(
        f"{url}#hparams", "optimizer.lr", "few/tensorboard", "many/tensorboard", "0.030000", "eval/loss"
    )
    see(browser, tmp_path, "hparams")


def test_a_word_that_the_page_does_not_show_is_an_error(url: str, browser: Browser) -> None:
    with pytest.raises(AssertionError, match=r"does not show \['lr/absent'\], but:\n.*lr/default"):
        browser.read(f"{url}?tagFilter=lr/default#timeseries", "lr/default", "lr/absent", timeout=10)
