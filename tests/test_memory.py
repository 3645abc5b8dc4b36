"""What is told where memory runs out: on the CPU with tensors that are really there, on a GPU for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.kit import run_distributed, run_torchrun
from tests.runs import train, write_config

HERE = __name__
MIB = 2**20


class Hungry(nn.Module):
    """Runs out of memory at one of its forwards in training mode, on one rank; the first is the rehearsal."""

    def __init__(self, at: int = 7, rank: int = 1) -> None:
        super().__init__()
        self.large = nn.Linear(1024, 2048, bias=False)  # 8 MiB
        self.small = nn.Linear(9, 9)
        self.register_buffer("mask", torch.zeros(3 * MIB, dtype=torch.uint8))
        self.at, self.rank, self.calls = at, rank, 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if (self.calls, dist.get_rank()) == (self.at, self.rank):
            held = [torch.zeros(MIB, dtype=torch.float32) for _ in range(3)]
            raise torch.OutOfMemoryError(f"out of memory, beside {len(held)} others")
        return self.small(windows.float()).square().mean() + self.large.weight.square().mean()


class Insatiable(nn.Module):
    """Asks the device for more than there is, after the rehearsal."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(9, 9)
        self.calls = 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.calls == 3:
            torch.empty(2**50, dtype=torch.uint8, device=windows.device)
        return self.head(windows.float()).square().mean()


def hungry(folder: Path, **changes: Any) -> Path:
    optimizer = {"type": "AdamW", "lr": 1e-3}
    model = {"type": f"{HERE}:Hungry", **changes.pop("model", {})}
    return write_config(folder, model=model, optimizer=optimizer, eval=None, **changes)


def _note(path: Path) -> str:
    """What the error of a run says beside its message, on this rank."""
    try:
        train(path)
    except RuntimeError as error:
        return "\n".join(getattr(error, "__notes__", []))
    return "it ended well"


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run → what rank 1 has to say; rank 0 has nothing."""
    found = {}
    for name, changes in {
        "ddp": {"ema": {"decay": 0.9}},
        "fsdp": {"strategy": "fsdp"},
        "rehearsal": {"model": {"at": 1}},
    }.items():
        folder = tmp_path_factory.mktemp(name)
        of_rank_0, found[name] = run_distributed(_note, hungry(folder, **changes))
        assert of_rank_0 == ""
        found[f"{name}-log"] = (folder / "run" / "logs" / "rank1.log").read_text()
    return found


def lines(note: str) -> list[str]:
    return [" ".join(line.split()) for line in note.splitlines()]


@pytest.mark.parametrize(("strategy", "size", "rows"), [("ddp", "0.008", 2048), ("fsdp", "0.004", 1024)])
def test_parameters_and_the_optimizer_s_state_are_named_with_the_size_of_this_rank_s_part(
    notes, strategy, size, rows
):
    found = lines(notes[strategy])
    assert found[0] == "on rank 1, cpu"
    for name in ("large.weight", "large.weight.exp_avg", "large.weight.exp_avg_sq"):
        assert f"{size} GiB {name} float32 ({rows}, 1024)" in found
    assert f"{3 / 1024:.3f} GiB mask uint8 ({3 * MIB},)" in found


def test_averages_are_named(notes):
    assert "0.008 GiB large.weight.ema float32 (2048, 1024)" in lines(notes["ddp"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_other_tensors_that_are_alive_are_counted_by_shape(notes, strategy):
    found = lines(notes[strategy])
    assert any(line.startswith("0.012 GiB 3 × float32 (1048576,)") for line in found)


def test_it_is_in_the_log_with_the_traceback(notes):
    assert notes["ddp"] in notes["ddp-log"]
    assert "beside 3 others" in notes["ddp-log"]


def test_memory_that_runs_out_in_the_rehearsal_is_explained_as_well(notes):
    assert "0.008 GiB large.weight float32 (2048, 1024)" in lines(notes["rehearsal"])
    assert "exp_avg" not in notes["rehearsal"]


@pytest.mark.gpu
@pytest.mark.slow
def test_a_gpu_s_memory_is_written_as_a_snapshot_with_its_history(tmp_path):
    model = {"type": f"{HERE}:Insatiable"}
    changes = {"optimizer": {"type": "SGD", "lr": 0.1}, "eval": None, "profile": {"memory_history": True}}
    done = run_torchrun([str(write_config(tmp_path, model=model, **changes))], nproc=1)
    assert done.returncode != 0
    snapshot = tmp_path / "run" / "traces" / "out_of_memory.rank0.pickle"
    assert f"snapshot: {snapshot}" in done.stderr
    assert b"test_memory.py" in snapshot.read_bytes()
