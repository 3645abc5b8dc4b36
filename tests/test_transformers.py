"""A model of transformers from the ten lines that docs/models.md shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.kit import run_distributed
from tests.runs import losses, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("strategy", "checkpointing"), [("ddp", "none"), ("fsdp", "none"), ("fsdp", "selective")]
)
def test_it_learns_and_its_tied_head_stays_tied(tmp_path, strategy, checkpointing):
    pytest.importorskip("transformers")
    page = Path(__file__).parents[1] / "docs" / "models.md"
    text = re.search(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)[1]
    assert len(text.splitlines()) <= 10
    (tmp_path / "cfg.yaml").write_text(text)
    np.save(tmp_path / "train.npy", np.arange(8192, dtype=np.uint16) % 31)
    small = ["model.config.n_layer=2", "model.config.n_embd=32", "model.config.vocab_size=64"]
    short = [
        "data.train.context=32",
        "max_steps=30",
        "log.every=1",
        f"strategy={strategy}",
        f"activation_checkpointing={checkpointing}",
        "optimizer.lr=0.01",
    ]
    where = [f"work_dir={tmp_path / 'run'}", f"data.train.path={tmp_path / 'train.npy'}"]
    first, second = run_distributed(train, tmp_path / "cfg.yaml", *small, *short, *where, timeout=110)
    assert "lm_head.weight" not in first  # named_parameters tells a shared one once
    assert all((first[name] == second[name]).all() for name in first)
    found = losses(tmp_path / "run")
    assert found[0] == pytest.approx(np.log(64), rel=0.05)
    assert found[-1] < 1
