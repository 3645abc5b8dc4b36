"""What tests of whole runs share: a small config, and reading back what a run wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.distributed.tensor import DTensor

from distopt import Runner, load_config
from tests.kit.files import write_at_once

STEPS = 12
CONFIG: dict[str, Any] = {
    "model": {"type": "ByteGPT", "context": 8, "width": 16, "depth": 2, "heads": 2},
    "data": {
        "train": {"type": "tests.components:Windows", "length": 64},
        "val": {"type": "tests.components:Windows", "length": 21, "seed": 1},
        "batch_size": 16,
        "micro_batch_size": 2,
    },
    "max_steps": STEPS,
    "optimizer": {
        "type": "AdamW",
        "lr": 1e-2,
        "weight_decay": 0.1,
        "paramwise_cfg": {
            "norm_decay_mult": 0,
            "bypass_duplicate": True,
            "custom_keys": {"embedding": {"lr_mult": 0.5}},
        },
    },
    "param_scheduler": [
        {"type": "LinearLR", "by_epoch": False, "start_factor": 0.1, "end": 4},
        {"type": "CosineAnnealingLR", "by_epoch": False, "begin": 4, "end": 12, "eta_min": 1e-3},
    ],
    "clip_grad": {"max_norm": 1.0},
    "eval": {"every": 5},
    "checkpoint": {"every": 4},
    "log": {"every": 1},
}


def write_config(folder: Path, *, name: str = "cfg.yaml", **changes: Any) -> Path:
    """A config file in `folder` whose run directory is `folder / "run"`; `changes` replace whole sections."""
    path = folder / name
    content = {"work_dir": str(folder / "run"), **CONFIG, **changes}
    write_at_once(path, yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def train(config: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Trains in this process (one of the ranks, where there are several); the parameters at the end."""
    runner = Runner(load_config(config, overrides))
    runner.train()
    return whole(runner.model) if hasattr(runner, "model") else {}


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter of a model, unsharded."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def train_alone(config: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """As `train`, in a process that no launcher started."""
    assert "RANK" not in os.environ
    return train(config, *overrides)


def rows(run: Path, kind: str = "loss") -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that have the key `kind`."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if kind in row]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())
