"""What TensorBoard shows of a run, seen in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.kit.browser import CHROMIUM, Browser, tensorboard

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.timeout(300),
]

GROUPS = {"default": 1e-3, "norm": 5e-4, "head.bias": 2e-3}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logdir = tmp_path_factory.mktemp("tensorboard")
    with SummaryWriter(logdir) as writer:
        writer.add_custom_scalars({"optim": {"lr": ["Multiline", ["^lr/.*"]]}})
        for step in range(1, 20):
            for group, lr in GROUPS.items():
                writer.add_scalar(f"lr/{group}", lr * step, step)
    with tensorboard(logdir) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as page:
        yield page


@pytest.mark.parametrize("tab", ["timeseries", "scalars"])
def test_a_tab_has_a_chart_for_each_group(tab: str, url: str, browser: Browser, tmp_path: Path) -> None:
    browser.read(f"{url}#{tab}", *(f"lr/{group}" for group in GROUPS))
    browser.screenshot(tmp_path / f"{tab}.png")
    assert (tmp_path / f"{tab}.png").stat().st_size > 10_000


def test_one_custom_chart_has_every_group(url: str, browser: Browser, tmp_path: Path) -> None:
    browser.read(f"{url}#timeseries", "lr/default")  # and away from it, while it still loads
    browser.read(f"{url}#custom_scalars", "optim", "Matches (3)", *(f"lr/{group}" for group in GROUPS))
    browser.click(".toggle-matches-button")
    browser.screenshot(tmp_path / "custom_scalars.png")
    assert (tmp_path / "custom_scalars.png").stat().st_size > 10_000


def test_a_word_that_the_page_does_not_show_is_an_error(url: str, browser: Browser) -> None:
    with pytest.raises(AssertionError, match=r"does not show \['lr/absent'\], but:\n.*lr/default"):
        browser.read(f"{url}#scalars", "lr/default", "lr/absent", timeout=20)
