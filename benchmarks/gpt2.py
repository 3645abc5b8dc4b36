"""Tokens per second and the share of the GPU's peak (MFU) of a model of GPT-2's size, against a loop by hand.

    torchrun --standalone --nproc_per_node=1 -m benchmarks.gpt2

bf16, compiled block by block, fused AdamW, DDP; on as many GPUs as there are ranks. The runner trains with
one optimizer group, with the usual four, and with one for each tensor.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.overhead import Windows, _work_dir, batches
from distopt import Runner, comm
from distopt.callbacks import Callback, Run
from distopt.config import Config, validate
from distopt.models import ByteGPT

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""bf16 FLOP/s of dense matrix products, as NVIDIA's data sheets have it."""

RULES: dict[str, dict[str, Any]] = {
    "one group": {},
    "four groups": {
        "norm_decay_mult": 0,
        "bias_decay_mult": 0,
        "custom_keys": {"embedding": {"lr_mult": 0.5}, "positions": {"lr_mult": 0.5}},
    },
}


@dataclass(frozen=True)
class Size:
    """The model's arguments, and the samples of a rank's step."""

    vocab_size: int = 50304
    context: int = 1024
    width: int = 768
    depth: int = 12
    heads: int = 12

    @property
    def model(self) -> dict[str, int]:
        return asdict(self)


def flops_per_token(size: Size, parameters: int) -> float:
    """Forward and backward, by the count of PaLM's appendix B: 6 N + 12 L d T."""
    return 6 * parameters + 12 * size.depth * size.width * size.context


class Clock(Callback):
    """When each step was done, as the device sees it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, run: Run) -> None:
        self.times.append(now())


def now() -> float:
    """The time at which the device has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def by_hand(size: Size, micro_batch: int, steps: int, backend: str) -> list[float]:
    """What one would write without distopt. Returns when each step was done."""
    world = comm.World.from_env()
    torch.manual_seed(0)
    model = ByteGPT(**size.model, tie=False).to(world.device)
    for block in model.blocks:
        block.compile(backend=backend)
    ids = [world.device.index] if world.device.type == "cuda" else None
    replica = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(replica.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    data = batches(Windows(size.context, 512), micro_batch * world.size, world)
    times = []
    for _ in range(steps):
        with torch.autocast(world.device.type, torch.bfloat16):
            loss = replica(next(data).to(world.device, non_blocking=True))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(replica.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(now())
    return times


def by_runner(
    size: Size, micro_batch: int, steps: int, backend: str, paramwise: dict[str, Any] | None
) -> list[float]:
    """The same from a config; None for a group of its own for each tensor."""
    clock, world = Clock(), comm.World.from_env()
    if paramwise is None:
        model = ByteGPT(**size.model, tie=False)
        # Each differs a little: groups of the same options and rules would be one.
        names = [name for name, _ in model.named_parameters()]
        paramwise = {"custom_keys": {name: {"lr_mult": 1 + i * 1e-6} for i, name in enumerate(names)}}
    with _work_dir() as work_dir:
        config = {
            "work_dir": str(work_dir / "run"),
            "model": {"type": "ByteGPT", **size.model, "tie": False},
            "data": {
                "train": {"type": "benchmarks.overhead:Windows", "context": size.context, "length": 512},
                "batch_size": micro_batch * world.size,
            },
            "max_steps": steps,
            "precision": "bf16",
            "compile": {"backend": backend},
            "optimizer": {"type": "AdamW", "lr": 1e-4, "weight_decay": 0.1, "paramwise_cfg": paramwise},
            "clip_grad": {"max_norm": 1.0},
        }
        Runner(validate(Config, config), callbacks=[clock]).train()
    return clock.times


def seconds_per_step(times: list[float], warm_up: int) -> float:
    return median(
        after - before for before, after in zip(times[warm_up:], times[warm_up + 1 :], strict=False)
    )


def measure(
    size: Size, *, micro_batch: int, steps: int, warm_up: int, backend: str = "inductor"
) -> list[tuple[str, float]]:
    """Seconds per step of each."""
    rows = [("by hand", seconds_per_step(by_hand(size, micro_batch, steps, backend), warm_up))]
    for name, paramwise in {**RULES, "a group per tensor": None}.items():
        times = by_runner(size, micro_batch, steps, backend, paramwise)
        rows.append((f"distopt, {name}", seconds_per_step(times, warm_up)))
    return rows


def line(name: str, seconds: float, hand: float, size: Size, micro_batch: int) -> str:
    """A line of the table."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in ByteGPT(**size.model, tie=False).parameters())
    tokens = micro_batch * size.context / seconds
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    peak = next((flops for name, flops in PEAK.items() if name in device), None)
    mfu = f"{tokens * flops_per_token(size, parameters) / peak:.1%}" if peak else "–"
    return f"| {name} | {1e3 * seconds:.2f} | {tokens:,.0f} | {mfu} | {seconds / hand:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--micro-batch", type=int, default=16, help="samples per rank and step")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    world = comm.World.from_env()
    with comm.process_group(world):
        rows = measure(Size(), micro_batch=args.micro_batch, steps=args.steps, warm_up=20)
        if world.is_main:
            print("| loop | ms per step | tokens/s per rank | MFU | ratio |\n| --- | --- | --- | --- | --- |")
            for name, seconds in rows:
                print(line(name, seconds, rows[0][1], Size(), args.micro_batch))


if __name__ == "__main__":
    main()
