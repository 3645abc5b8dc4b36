"""A checkpoint that cannot be written costs that checkpoint, and nothing else."""

from __future__ import annotations

import pytest

from distopt.checkpoint import directory
from tests.kit import run_distributed
from tests.kit.distributed import RankError
from tests.runs import STEPS, status, train, write_config


def _in_the_way(step: int) -> dict:
    return {"type": "tests.components:InTheWay", "step": step}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_training_goes_on_after_a_checkpoint_that_cannot_be_written(tmp_path, asynchronous):
    checkpoint = {"every": 4, "asynchronous": asynchronous}
    run_distributed(train, write_config(tmp_path, checkpoint=checkpoint, callbacks=[_in_the_way(4)]))
    assert status(tmp_path / "run")["state"] == "done"
    assert [path.name for path in directory.committed(tmp_path / "run")] == ["step_00000008", "step_00000012"]
    said = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert "the checkpoint could not be written: " in said
    assert "training goes on, and the next checkpoint tries again" in said


def test_a_run_whose_last_checkpoint_cannot_be_written_has_failed(tmp_path):
    with pytest.raises(RankError, match="could not be written"):
        run_distributed(train, write_config(tmp_path, callbacks=[_in_the_way(STEPS)]))
    assert status(tmp_path / "run")["state"] == "failed"
    assert directory.newest(tmp_path / "run").name == "step_00000008"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_parameters_that_are_no_numbers_are_named_and_not_saved(tmp_path, strategy):
    callbacks = [{"type": "tests.components:Poison", "step": 6, "parameter": "norm.bias"}]
    path = write_config(
        tmp_path, strategy=strategy, callbacks=callbacks, log={"every": 100}, checkpoint={"every": 2}
    )
    with pytest.raises(RankError, match=r"after step 6 .* in norm\.bias"):
        run_distributed(train, path)
    assert directory.newest(tmp_path / "run").name == "step_00000004"
    assert status(tmp_path / "run")["state"] == "failed"


def test_multiples_of_keep_every_stay(tmp_path):
    checkpoint = {"every": 2, "keep_last": 1, "keep_every": 4}
    run_distributed(train, write_config(tmp_path, checkpoint=checkpoint))
    assert [directory.read_progress(path).step for path in directory.committed(tmp_path / "run")] == [
        4,
        8,
        12,
    ]
