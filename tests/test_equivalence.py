"""The same training whatever the strategy, against a loop that is written by hand for one process."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from distopt import Runner
from distopt.config import Config, validate
from distopt.models import ByteGPT
from tests.covering import covering
from tests.kit import run_distributed
from tests.runs import rows, whole

STEPS, SAMPLES, CONTEXT = 4, 16, 8
LR, WEIGHT_DECAY, MAX_NORM = 1e-2, 0.1, 0.5
EPS = 1e-4
"""Larger than rounding makes the gradients that are 0 by nature, such as those of the keys' biases."""


class Cell(NamedTuple):
    """One training."""

    strategy: str
    accumulation: int
    clip: bool
    tied: bool
    frozen: bool
    checkpointing: bool
    precision: str

    def __str__(self) -> str:
        switches = ("clip", "tied", "frozen", "checkpointing")
        on = [name for name in switches if getattr(self, name)]
        return "-".join([self.strategy, f"accumulate{self.accumulation}", *on, self.precision])


AXES = [
    ["single", "ddp", "fsdp", "hsdp"],
    [1, 4],
    [False, True],
    [False, True],
    [False, True],
    [False, True],
    ["fp32", "bf16"],
]
CELLS = [Cell(*values) for values in product(*AXES)]


class Net(ByteGPT):
    """A small model, the first block frozen or not; the norms' weights are smaller than the world."""

    def __init__(self, *, tie: bool, frozen: bool) -> None:
        super().__init__(context=CONTEXT, width=6, depth=2, heads=2, tie=tie)
        self.blocks[0].requires_grad_(not frozen)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        out = super().forward(tokens)
        return {**out, "loss": out["loss"] * self.scale.float().sum()}


class Samples(Dataset[Tensor]):
    """As many as a batch has, so that every step is taken on all of them, in whatever order."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(256, (CONTEXT + 1,), generator=generator)


def by_hand(cell: Cell) -> tuple[list[float], dict[str, Tensor]]:
    """The losses, and the parameters at the end."""
    torch.manual_seed(0)
    model = Net(tie=cell.tied, frozen=cell.frozen)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if id(p) not in norms], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in trained if id(p) in norms], "weight_decay": 0.0},
        ],
        lr=LR,
        eps=EPS,
    )
    tokens = torch.stack([Samples()[i] for i in range(SAMPLES)])
    losses = []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=cell.precision == "bf16"):
            loss = model(tokens)["loss"]
        loss.backward()
        if cell.clip:
            nn.utils.clip_grad_norm_(trained, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in model.named_parameters()}


def by_runner(cell: Cell, work_dir: Path) -> dict[str, Tensor]:
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    strategy: dict[str, Any] = {"type": cell.strategy}
    if cell.strategy == "hsdp":
        strategy["shard_size"] = world // 2
    config = {
        "work_dir": str(work_dir),
        "model": {"type": "tests.test_equivalence:Net", "tie": cell.tied, "frozen": cell.frozen},
        "data": {
            "train": {"type": "tests.test_equivalence:Samples"},
            "batch_size": SAMPLES,
            "micro_batch_size": SAMPLES // world // cell.accumulation,
        },
        "max_steps": STEPS,
        "strategy": strategy,
        "precision": cell.precision,
        "activation_checkpointing": "full" if cell.checkpointing else "none",
        "optimizer": {
            "type": "AdamW",
            "lr": LR,
            "eps": EPS,
            "weight_decay": WEIGHT_DECAY,
            "paramwise_cfg": {"norm_decay_mult": 0, "bypass_duplicate": True},
        },
        "log": {"every": 1},
    }
    if cell.clip:
        config["clip_grad"] = {"max_norm": MAX_NORM}
    runner = Runner(validate(Config, config))
    runner.train()
    return whole(runner.model)


def by_runners(cells: list[Cell], folder: Path) -> list[dict[str, Tensor]]:
    return [by_runner(cell, folder / str(cell)) for cell in cells]


def deviation(trained: dict[str, Tensor], reference: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """How far the parameters are from the reference's, as a share of how far these have moved."""
    apart = sum((trained[name] - value).square().sum() for name, value in reference.items())
    moved = sum((value - start[name]).square().sum() for name, value in reference.items())
    return (apart / moved).sqrt().item()


def check(cells: list[Cell], folder: Path) -> None:
    """Trains all cells of one strategy in as few processes as they need, and compares each."""
    world = {"single": 1, "hsdp": 4}.get(cells[0].strategy, 2)
    for cell, trained in zip(
        cells, run_distributed(by_runners, cells, folder, world=world, timeout=600)[0], strict=True
    ):
        losses, reference = by_hand(cell)
        logged = rows(folder / str(cell))
        tolerance = 1e-6 if cell.precision == "fp32" else 5e-3
        assert [row["loss"] for row in logged] == pytest.approx(losses, rel=tolerance), cell
        torch.manual_seed(0)
        net = Net(tie=cell.tied, frozen=cell.frozen)
        start = {name: p.detach() for name, p in net.named_parameters()}
        assert deviation(trained, reference, start) < (1e-5 if cell.precision == "fp32" else 0.05), cell
        for name, p in net.named_parameters():
            assert p.requires_grad or torch.equal(trained[name], p), (cell, name)


@pytest.mark.parametrize("strategy", AXES[0])
def test_a_covering_part_of_the_matrix_trains_as_by_hand(strategy, tmp_path):
    check([cell for cell in covering(CELLS) if cell.strategy == strategy], tmp_path)


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", AXES[0])
def test_the_whole_matrix_trains_as_by_hand(strategy, tmp_path):
    check([cell for cell in CELLS if cell.strategy == strategy], tmp_path)
