"""A small config, and ways to load a text as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st

from distopt.config import Config, load_config
from distopt.errors import ConfigError

MINIMAL = """\
model: {type: ByteGPT}
data:
  train: {type: StdlibText}
  batch_size: 8
max_steps: 10
optimizer:
  type: AdamW
  lr: 1e-3
"""

texts = st.text(st.characters(codec="utf-8")) | st.text("${}:-\\aA \n")
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)
"""What YAML can say, with texts that look like environment variables."""


def loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """As a fixture: loads a text, and overrides, from cfg.yaml in a new working directory."""
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes = MINIMAL, *overrides: str) -> Config:
        Path("cfg.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config("cfg.yaml", overrides)

    return load


def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """As a fixture: what is said when loading fails."""
    load = loading(tmp_path, monkeypatch)

    def message(text: str | bytes, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return str(caught.value)

    return message
