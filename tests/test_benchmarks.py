"""The benchmarks run, at a size that costs little; what they measure is nobody's to assert."""

import pytest

from benchmarks import overhead
from tests.kit import run_distributed

TINY = overhead.Size({"width": 16, "depth": 2, "heads": 2, "context": 8}, batch_size=8)


def _lines() -> list[str]:
    rows = [overhead.measure(strategy, "tiny", TINY, pairs=2, steps=15) for strategy in overhead.SIZES]
    assert all(len(row.hand) == len(row.runner) == 2 for row in rows)
    return [overhead.line(row) for row in rows]


@pytest.mark.slow
def test_overhead_has_a_line_for_each_strategy_with_both_times_and_their_ratio():
    lines = run_distributed(_lines)[0]
    assert [line.split(" | ")[:2] for line in lines] == [["| ddp", "tiny"], ["| fsdp", "tiny"]]
    assert {line.count("|") for line in (*overhead.HEAD.splitlines(), *lines)} == {8}


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
