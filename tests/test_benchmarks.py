"""The benchmarks run, at a size that costs little; what they measure is nobody's to assert."""

import pytest
import torch

from benchmarks import checkpoint, ema, gpt2, monitoring, optimizer, overhead, schedule, startup
from benchmarks.step import events
from tests.kit import run_distributed

TINY = overhead.Size({"width": 16, "depth": 2, "heads": 2, "context": 8}, batch_size=8)


def _row(strategy: str) -> overhead.Row:
    return overhead.measure(strategy, "tiny", TINY, runs=1, pairs=2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", overhead.SIZES)
def test_overhead_has_a_line_for_each_strategy_with_both_times_and_their_ratio(strategy):
    row = run_distributed(_row, strategy)[0]
    assert len(row.hand) == len(row.runner) == 2
    line = overhead.line(row)
    assert line.split(" | ")[:2] == [f"| {strategy}", "tiny"]
    assert {text.count("|") for text in (*overhead.HEAD.splitlines(), line)} == {9}


def _monitoring_row() -> monitoring.Row:
    return monitoring.measure("ddp", "tiny", TINY, runs=1, rows=2)


def test_the_rows_of_a_run_have_a_line():
    row = run_distributed(_monitoring_row)[0]
    assert len(row.quiet) == len(row.costs) == 2
    assert {text.count("|") for text in (*monitoring.HEAD.splitlines(), monitoring.line(row))} == {7}


def _optimizer_rows() -> list[optimizer.Row]:
    stepped = [optimizer.stepping("small", name, turns=2) for name in optimizer.OPTIMIZERS]
    whole = optimizer.stepping("small", "AdamW, fused", turns=2, sharded=False)
    return [*stepped, optimizer.clipping("small", turns=2), whole]


def test_the_optimizers_of_torch_and_ours_have_a_line_each():
    rows = run_distributed(_optimizer_rows)[0]
    assert [row.what for row in rows] == [
        *optimizer.OPTIMIZERS,
        "clipping",
        "AdamW, fused, whole tensors",
    ]
    assert all(len(row.by_torch) == len(row.by_us) == 2 for row in rows)
    assert {text.count("|") for text in (*optimizer.HEAD.splitlines(), *map(optimizer.line, rows))} == {7}


def _ema_rows() -> list[ema.Row]:
    return [ema.whole("small", turns=2), ema.of_shards("small", turns=2)]


def test_the_averages_of_whole_models_and_of_shards_have_a_line_each():
    rows = run_distributed(_ema_rows)[0]
    assert [row.beside for row in rows] == ["AveragedModel", "DTensors"]
    assert all(len(row.theirs) == len(row.ours) == 2 for row in rows)
    assert {text.count("|") for text in (*ema.HEAD.splitlines(), *map(ema.line, rows))} == {7}


def test_the_hand_written_loop_has_the_groups_and_the_schedule_of_the_config(tmp_path):
    from distopt import build_optimizer, build_schedule
    from distopt.models import ByteGPT

    model = ByteGPT(**TINY.model, tie=False)
    config = overhead._config(tmp_path, "ddp", TINY, steps=40)
    optimizer = build_optimizer(model, config.optimizer)
    by_hand = overhead._groups(model)
    assert [(set(map(id, group["params"])), group["weight_decay"]) for group in optimizer.param_groups] == [
        (set(map(id, group["params"])), group.get("weight_decay", 0.1)) for group in by_hand
    ]

    schedule = build_schedule(optimizer, config.param_scheduler, max_steps=40)
    for step in range(40):
        schedule.apply(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(overhead.LR * overhead._factor(step, 40))


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before:UserWarning")
@pytest.mark.filterwarnings("ignore:.*epoch parameter:UserWarning")
def test_the_schedulers_that_take_turns_give_the_same_values():
    opts = [schedule.optimizer(3) for _ in range(2)]
    ours = schedule.build_schedule(opts[0], schedule.ENTRIES, max_steps=schedule.STEPS)
    by_hand = schedule.by_lambda(opts[1])
    for step in range(schedule.STEPS):
        ours.apply(step)
        assert schedule.lrs(opts[0]) == pytest.approx(schedule.lrs(opts[1]), rel=1e-9, abs=1e-15)
        by_hand.step()
    assert schedule.line(rounds=1, steps=300).count("|") == 8


@pytest.mark.system
@pytest.mark.parametrize("what", ["hand", "distopt"])
def test_the_first_step_is_seen_by_hand_and_by_the_runner(what):
    assert 0 < startup.seconds_to_first_step(what) < 100


def _seconds_per_step() -> list[tuple[str, float]]:
    size = gpt2.Size(vocab_size=256, context=8, width=16, depth=2, heads=2)
    return gpt2.measure(size, micro_batch=2, steps=3, warm_up=0, backend="eager")


@pytest.mark.slow
def test_gpt2_is_measured_by_hand_and_with_few_and_many_groups():
    assert [name for name, _ in run_distributed(_seconds_per_step)[0]] == [
        "by hand",
        "distopt, one group",
        "distopt, four groups",
        "distopt, a group per tensor",
    ]


def _events(strategy: str) -> list[str]:
    return [event.key for event in events(strategy, TINY)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_profiled_step_has_the_models_operators_and_the_optimizers(strategy):
    found = run_distributed(_events, strategy)[0]
    assert {"aten::mm", "Optimizer.step#AdamW.step", "aten::_fused_adamw_"} <= set(found)


def _checkpoint() -> checkpoint.Result:
    return checkpoint.measure(megabytes=24, repetitions=1, device=torch.device("cpu"))


@pytest.mark.slow
def test_checkpoints_are_measured_both_ways():
    found = run_distributed(_checkpoint)[0]
    assert {what for ratio in checkpoint.RATIOS for what in ratio} <= found.seconds.keys()
    assert found.part == 12
