"""One optimizer step: its gradient is that of the mean over all items of the global batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distopt import ConfigError, build_optimizer, parallel
from distopt.config import ClipGradConfig, StrategyConfig
from distopt.data import MicroBatch, Step
from distopt.gradients import GradientStep
from distopt.objective import Objective
from distopt.stopwatch import Stopwatch
from tests.kit import run_distributed

CPU = torch.device("cpu")
ROWS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(24, 4, generator=torch.Generator().manual_seed(1)) > 0.6
MASK[6:9] = False  # a micro-batch without any item
EVEN = [[range(6), range(6, 12)], [range(12, 18), range(18, 24)]]
UNEVEN = [[range(6), range(6, 9)], [range(9, 10), None]]
"""Rank → micro-batch → rows; None is a dummy, which all ranks need to keep step."""
strategies = pytest.mark.parametrize("strategy", ["ddp", "fsdp"])


class Net(nn.Module):
    """Mean squares per row or, given a mask, per unmasked element; `counts` says how to say how many."""

    def __init__(self, counts: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
        self.counts = counts
        self.register_buffer("ones", torch.ones(4))  # which the backward wants as the forward had them

    def forward(self, rows: Tensor, mask: Tensor) -> Any:
        squares = (self.layers(rows).float() * self.ones).square()
        if self.counts is None:
            return {"loss": squares.mean(), "rows": float(len(rows))}
        return {"loss": squares[mask].mean(), "num_items": self.counts(mask.sum())}


def take(layout: list, strategy: str, counts: Any = None, precision: str = "fp32", clip: Any = None) -> Any:
    """One step of SGD with lr 1 on this rank; the gradient that it took, the means, and the norm."""
    model = Net(counts)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapped = parallel.wrap(model, StrategyConfig(type=strategy), CPU)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1.0)
    step = GradientStep(
        Objective(wrapped),
        optimizer,
        precision=precision,
        clip=ClipGradConfig(**clip) if clip else None,
        device=CPU,
    )
    samples = sum(len(rows) for rank in layout for rows in rank if rows)
    micro_batches = [
        MicroBatch((ROWS[list(rows or [0])], MASK[list(rows or [0])]), len(rows or []))
        for rows in layout[dist.get_rank()]
    ]
    whole = Step(micro_batches, samples)
    step.rehearse(whole)
    taken = step.take(whole, Stopwatch(CPU, "data"))
    means = taken.means.reduce().values
    after = {name: full(p) for name, p in model.named_parameters()}
    return {name: before[name] - after[name] for name in before}, means, float(full(taken.grad_norm))


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def oracle(layout: list, masked: bool) -> dict[str, Tensor]:
    """The gradient of the mean over the whole batch, in one piece."""
    rows = [row for rank in layout for part in rank if part for row in part]
    net = Net(counts=int if masked else None)
    net(ROWS[rows], MASK[rows])["loss"].backward()
    return {name: p.grad for name, p in net.named_parameters()}


def close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-6)


@strategies
@pytest.mark.parametrize("layout", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_samples_count_alike_whatever_micro_batch_they_are_in(strategy, layout):
    for gradient, means, _ in run_distributed(take, layout, strategy):
        close(gradient, oracle(layout, masked=False))
        whole = Net()(*(t[[r for k in layout for m in k if m for r in m]] for t in (ROWS, MASK)))
        assert means["loss"] == pytest.approx(whole["loss"].item(), rel=1e-5)


@strategies
@pytest.mark.parametrize("layout", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("counts", [Tensor.clone, int, float], ids=["tensor", "int", "float"])
def test_items_count_alike_whatever_micro_batch_and_rank_they_are_in(strategy, layout, counts):
    for gradient, means, _ in run_distributed(take, layout, strategy, counts):
        close(gradient, oracle(layout, masked=True))
        rows = [row for rank in layout for part in rank if part for row in part]
        whole = Net(int)(ROWS[rows], MASK[rows])["loss"].item()
        assert means["loss"] == pytest.approx(whole, rel=1e-5)


def hundredths(count: Tensor) -> float:
    return float(count) / 100


@strategies
def test_items_may_be_sums_of_weights_of_any_scale(strategy):
    for gradient, *_ in run_distributed(take, UNEVEN, strategy, hundredths):
        close(gradient, oracle(UNEVEN, masked=True))


@strategies
def test_a_batch_without_any_item_has_a_gradient_of_zero(strategy):
    nothing = [[range(6, 9)], [range(6, 9)]]
    for gradient, *_ in run_distributed(take, nothing, strategy, int):
        assert not any(value.any() for value in gradient.values())


@strategies
def test_other_scalars_are_means_over_the_samples(strategy):
    for _, means, _ in run_distributed(take, UNEVEN, strategy):
        assert means["rows"] == pytest.approx((6 * 6 + 3 * 3 + 1 * 1) / 10)


@strategies
@pytest.mark.parametrize("masked", [False, True])
def test_the_norm_is_that_of_the_whole_gradient_and_clipping_scales_it(strategy, masked):
    expected = oracle(UNEVEN, masked)
    norm = torch.cat([value.flatten() for value in expected.values()]).norm().item()
    counts, clip = (int if masked else None), {"max_norm": norm / 2}
    for gradient, _, found in run_distributed(take, UNEVEN, strategy, counts, "fp32", clip):
        assert found == pytest.approx(norm, rel=1e-4)
        close(gradient, {name: value / 2 for name, value in expected.items()})


def take_with_two_optimizers(strategy: str, max_norm: float) -> tuple[list[float], list[float], float]:
    """The norm of what each of two groups, of an optimizer each, was moved by; their norms; that of all."""
    model = Net()
    wrapped = parallel.wrap(model, StrategyConfig(type=strategy), CPU)
    keys = {"layers.2": {"type": "SGD", "lr": 1.0, "momentum": 0.9}}
    optimizer = build_optimizer(wrapped, {"type": "SGD", "lr": 1.0, "paramwise_cfg": {"custom_keys": keys}})
    before = {name: full(p).clone() for name, p in model.named_parameters()}
    clip = ClipGradConfig(max_norm=max_norm, per_group=True)
    step = GradientStep(Objective(wrapped), optimizer, precision="fp32", clip=clip, device=CPU)
    rows = EVEN[dist.get_rank()][0]
    batch = Step([MicroBatch((ROWS[list(rows)], MASK[list(rows)]), len(rows))], 12)
    step.rehearse(batch)
    taken = step.take(batch, Stopwatch(CPU, "data"))
    moved = {name: before[name] - full(p) for name, p in model.named_parameters()}
    moves = [[moved[name].flatten() for name in group["param_names"]] for group in optimizer.param_groups]
    return [torch.cat(m).norm().item() for m in moves], taken.group_norms.tolist(), taken.grad_norm.item()


@strategies
def test_each_group_is_clipped_by_its_own_norm(strategy):
    for moves, norms, norm in run_distributed(take_with_two_optimizers, strategy, 1e-3):
        assert min(norms) > 1e-3
        assert moves == pytest.approx([1e-3, 1e-3], rel=1e-2)
        assert norm == pytest.approx(sum(n * n for n in norms) ** 0.5)


@strategies
def test_clipping_by_value_cuts_each_element(strategy):
    expected = {name: value.clamp(-0.01, 0.01) for name, value in oracle(EVEN, False).items()}
    for gradient, *_ in run_distributed(take, EVEN, strategy, None, "fp32", {"max_value": 0.01}):
        close(gradient, expected)


@strategies
@pytest.mark.parametrize("masked", [False, True])
def test_fp16_gradients_are_those_of_the_unscaled_loss(strategy, masked):
    counts = int if masked else None
    for gradient, *_ in run_distributed(take, UNEVEN, strategy, counts, "fp16"):
        close(gradient, oracle(UNEVEN, masked), rtol=0.05)


def overflow(strategy: str) -> tuple[bool, float]:
    """A step whose gradient overflows on rank 1 alone: whether parameters changed, and the scale after."""
    model = Net()
    wrapped = parallel.wrap(model, StrategyConfig(type=strategy), CPU)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1.0)
    before = [full(p).clone() for p in model.parameters()]
    step = GradientStep(Objective(wrapped), optimizer, precision="fp16", clip=None, device=CPU)
    rows = ROWS[:2] * (1e30 if dist.get_rank() == 1 else 1)
    batch = Step([MicroBatch((rows, MASK[:2]), 2)], 4)
    step.rehearse(batch)
    step.take(batch)
    after = [full(p) for p in model.parameters()]
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), step.scaler.get_scale()


@strategies
def test_a_step_that_overflows_on_one_rank_is_left_out_on_all_and_the_scale_halved(strategy):
    assert run_distributed(overflow, strategy) == [(False, 2.0**15)] * 2


def forget_once() -> str:
    model = Net(counts=int)
    wrapped = parallel.wrap(model, StrategyConfig(type="ddp"), CPU)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1.0)
    step = GradientStep(Objective(wrapped), optimizer, precision="fp32", clip=None, device=CPU)
    batch = Step([MicroBatch((ROWS[:2], MASK[:2]), 2)], 4)
    step.rehearse(batch)
    step.take(batch)
    model.counts = None
    with pytest.raises(ConfigError) as caught:
        step.take(batch)
    return caught.value.problem


def test_num_items_returned_at_times_only_is_an_error():
    assert run_distributed(forget_once) == ["returns num_items only at times"] * 2


def clipped_by_a_fused_optimizer(strategy: str) -> dict[str, Tensor]:
    """Two steps of momentum that remembers the size of what was clipped."""
    model = Net()
    wrapped = parallel.wrap(model, StrategyConfig(type=strategy), CPU)
    optimizer = build_optimizer(wrapped, {"type": "AdamW", "lr": 0.1, "fused": True})
    clip = ClipGradConfig(max_norm=0.01)
    step = GradientStep(Objective(wrapped), optimizer, precision="fp32", clip=clip, max_skipped=3, device=CPU)
    rows = list(EVEN[dist.get_rank()][0])
    batch = Step([MicroBatch((ROWS[rows], MASK[rows]), 6)], 12)
    step.rehearse(batch)
    for _ in range(2):
        step.take(batch)
    return {name: full(optimizer.state[p]["exp_avg"]) for name, p in model.named_parameters()}


@strategies
def test_a_fused_optimizer_clips_on_the_way_as_torch_does_before(strategy):
    net = Net()
    oracle = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    rows = [*EVEN[0][0], *EVEN[1][0]]
    for _ in range(2):
        net(ROWS[rows], MASK[rows])["loss"].backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        oracle.step()
        oracle.zero_grad()
    for found in run_distributed(clipped_by_a_fused_optimizer, strategy):
        close(found, {name: oracle.state[p]["exp_avg"] for name, p in net.named_parameters()}, rtol=1e-3)
