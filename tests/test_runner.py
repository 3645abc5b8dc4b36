"""Whole runs: the same training whatever the world, the run directory, the numbering of steps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distopt import ConfigError, load_config
from distopt.checkpoint import directory
from distopt.models import ByteGPT
from distopt.seeding import seed_everything
from tests.components import Windows
from tests.kit import run_distributed
from tests.runs import CONFIG, STEPS, losses, rows, status, train, train_alone, write_config


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run directory of the small config on one process: the oracle of the others."""
    folder = tmp_path_factory.mktemp("alone")
    train_alone(write_config(folder, strategy="single"))
    return folder / "run"


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp", 2), ("ddp", 4), ("fsdp", 4)])
def test_losses_are_those_of_one_process_whatever_the_strategy_and_the_world(
    tmp_path, alone, strategy, world
):
    run_distributed(train, write_config(tmp_path, strategy=strategy), world=world)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.parametrize("micro_batch_size", [16, 4])
def test_accumulation_changes_no_loss(tmp_path, alone, micro_batch_size):
    data = {**CONFIG["data"], "micro_batch_size": micro_batch_size}
    train_alone(write_config(tmp_path, data=data))
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_trains_under_every_strategy(tmp_path, alone, strategy, capsys):
    train_alone(write_config(tmp_path, strategy=strategy))
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)
    assert "started without torchrun" in capsys.readouterr().out


def test_a_loop_written_by_hand_gives_the_same_losses(alone):
    seed_everything(0)
    model = ByteGPT(context=8, width=16, depth=2, heads=2)
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    rest = [p for name, p in model.named_parameters() if "norm" not in name and "embedding" not in name]
    optimizer = torch.optim.AdamW(
        [
            {"params": [model.embedding.weight], "lr": 0.5e-2},
            {"params": rest},
            {"params": norms, "weight_decay": 0},
        ],
        lr=1e-2,
        weight_decay=0.1,
    )
    bases = [group["lr"] for group in optimizer.param_groups]
    data = Windows(length=64)
    import numpy as np

    expected = []
    for step in range(STEPS):
        epoch, place = divmod(step, 4)
        order = np.random.default_rng((0, epoch)).permutation(64)[place * 16 : (place + 1) * 16]
        factor = (
            0.1 + 0.9 * step / 3 if step < 4 else 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 4) / 8)) / 2
        )
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["lr"] = base * factor
        loss = model(data.windows[order])["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses(alone) == pytest.approx(expected, rel=1e-4)


def test_row_n_holds_the_values_that_the_nth_step_used(alone):
    found = {row["step"]: row["lr"] for row in rows(alone)}
    assert found[1] == pytest.approx({"embedding": 5e-4, "default": 1e-3, "norm": 1e-3})
    assert found[4] == pytest.approx({"embedding": 5e-3, "default": 1e-2, "norm": 1e-2})
    assert found[9]["default"] == pytest.approx(1e-3 + 9e-3 / 2)


def test_rows_have_the_epoch_of_their_step(alone):
    assert [row["epoch"] for row in rows(alone)] == [0] * 4 + [1] * 4 + [2] * 4


def test_evaluation_is_due_every_n_steps_and_at_the_end(alone):
    assert [row["step"] for row in rows(alone, "eval")] == [5, 10, 12]


def test_the_run_directory_is_complete_and_describes_itself(alone):
    assert yaml.safe_load((alone / "config.yaml").read_text())["data"]["batch_size"] == 16
    plan = json.loads((alone / "plan.json").read_text())
    assert [group["name"] for group in plan["groups"]] == ["embedding", "default", "norm"]
    assert (alone / "logs" / "rank0.log").exists()
    assert status(alone)["state"] == "done"
    assert status(alone)["step"] == STEPS
    assert status(alone)["checkpoint"] == "checkpoints/step_00000012"
    assert directory.newest(alone) == directory.step_directory(alone, STEPS)


def test_tensorboard_has_a_curve_for_each_group_by_name(alone):
    events = EventAccumulator(str(alone / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"lr/embedding", "lr/default", "lr/norm", "wd/embedding", "wd/default", "wd/norm"} <= tags
    assert {"loss/train", "eval/loss", "grad_norm/all", "perf/samples_per_second"} <= tags
    for group in ("embedding", "default", "norm"):
        points = {event.step: event.value for event in events.Scalars(f"lr/{group}")}
        assert points == pytest.approx({row["step"]: row["lr"][group] for row in rows(alone)})


def test_evaluation_is_the_mean_over_all_samples_of_all_ranks(tmp_path):
    for parameters in run_distributed(train, write_config(tmp_path, strategy="fsdp"), world=4):
        model = ByteGPT(context=8, width=16, depth=2, heads=2)
        model.load_state_dict({**parameters, "head.weight": parameters["embedding.weight"]})
        expected = model(Windows(length=21, seed=1).windows)["loss"].item()
        assert rows(tmp_path / "run", "eval")[-1]["eval"]["loss"] == pytest.approx(expected, rel=1e-5)


def test_only_some_steps_are_logged_but_always_the_first_and_the_last(tmp_path):
    train_alone(write_config(tmp_path, log={"every": 5}))
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 5, 10, 12]


def test_epochs_may_be_given_instead_of_steps(tmp_path):
    train_alone(write_config(tmp_path, max_steps=None, max_epochs=2))
    assert len(losses(tmp_path / "run")) == 8


def test_without_clipping_the_norm_is_logged_and_the_gradient_left_alone(tmp_path, alone):
    train_alone(write_config(tmp_path, clip_grad=None))
    assert rows(tmp_path / "run")[0]["grad_norm"] == pytest.approx(rows(alone)[0]["grad_norm"], rel=1e-4)
    assert rows(alone)[0]["grad_norm"] > 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bf16_trains_close_to_fp32(tmp_path, alone, strategy):
    run_distributed(train, write_config(tmp_path, strategy=strategy, precision="bf16"))
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=0.05)
    assert losses(tmp_path / "run") != pytest.approx(losses(alone), rel=1e-6)


def test_deterministic_runs_are_bitwise_equal(tmp_path):
    ends = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ends.append(run_distributed(train, write_config(tmp_path / name, deterministic=True))[0])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert losses(tmp_path / "a" / "run") == losses(tmp_path / "b" / "run")


def test_dropout_differs_between_ranks_but_the_weights_do_not(tmp_path):
    model = {**CONFIG["model"], "dropout": 0.5}
    first, second = run_distributed(train, write_config(tmp_path, model=model))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_old_checkpoints_are_pruned(tmp_path):
    train_alone(write_config(tmp_path, checkpoint={"every": 2, "keep_last": 2}))
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_00000010", "step_00000012"]


@pytest.mark.parametrize("at", [1, 3])
def test_a_model_that_raises_leaves_a_failed_status_and_its_traceback_in_the_log(tmp_path, at):
    model = {"type": "tests.components:Failing", "at": at}
    path = write_config(tmp_path, model=model, optimizer={"type": "SGD", "lr": 0.1})
    with pytest.raises(ZeroDivisionError):
        train_alone(path, "data.micro_batch_size=16")
    assert status(tmp_path / "run")["state"] == "failed"
    assert "a bug in the user's model" in status(tmp_path / "run")["reason"]
    assert "Traceback" in (tmp_path / "run" / "logs" / "rank0.log").read_text()


def test_where_nothing_is_skipped_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoints_before(
    tmp_path,
):
    path = write_config(
        tmp_path, model={"type": "tests.components:Diverging"}, optimizer={"type": "SGD", "lr": 0.1}
    )
    with pytest.raises(FloatingPointError, match="the loss of step 3 is nan"):
        train_alone(path, "data.micro_batch_size=16", "checkpoint.every=1", "max_skipped=0")
    assert status(tmp_path / "run")["checkpoint"] == "checkpoints/step_00000002"


def test_a_model_that_comes_in_evaluation_mode_is_trained_in_training_mode(tmp_path):
    from distopt import Runner

    model = ByteGPT(context=8, width=8, depth=1, heads=1).eval()
    Runner(load_config(write_config(tmp_path, max_steps=1)), model=model).train()
    assert all(module.training for module in model.modules())


def test_a_model_without_a_loss_is_named(tmp_path):
    path = write_config(
        tmp_path, model={"type": "tests.components:NoLoss"}, optimizer={"type": "SGD", "lr": 0.1}
    )
    with pytest.raises(ConfigError, match=r"model: NoLoss\.forward returned no scalar loss"):
        train_alone(path)


def _uneven_world(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        train(path)
    return str(error.value)


def test_a_world_that_does_not_divide_the_batch_is_refused_and_nothing_is_written(tmp_path):
    path = write_config(tmp_path)
    messages = run_distributed(_uneven_world, path, world=3)
    assert all("data.batch_size" in message for message in messages)
    assert not (tmp_path / "run").exists()


def test_parts_may_be_given_from_python(tmp_path):
    from distopt import Runner

    config = load_config(write_config(tmp_path))
    runner = Runner(
        config, model=ByteGPT(context=8, width=8, depth=1, heads=1), train_data=Windows(length=32)
    )
    runner.train()
    assert runner.prepared.steps_per_epoch == 2
    assert status(tmp_path / "run")["state"] == "done"


def test_a_given_dataset_smaller_than_the_batch_is_refused(tmp_path):
    from distopt import Runner

    with pytest.raises(ConfigError, match=r"data\.batch_size"):
        Runner(load_config(write_config(tmp_path)), train_data=Windows(length=15)).train()


def test_the_run_s_own_config_reproduces_it(tmp_path, alone, monkeypatch):
    """Bases, variables and overrides are resolved in it."""
    monkeypatch.setenv("WIDTH", "16")
    write_config(tmp_path, name="base.yaml", strategy="single", model={**CONFIG["model"], "width": 99})
    derived = tmp_path / "derived.yaml"
    derived.write_text("_base_: base.yaml\nmodel:\n  width: ${WIDTH}\nseed: 5\n")
    train_alone(derived, "seed=0")
    assert losses(tmp_path / "run") == losses(alone)
    monkeypatch.delenv("WIDTH")
    train_alone(tmp_path / "run" / "config.yaml", f"work_dir={tmp_path / 'again'}")
    assert losses(tmp_path / "again") == losses(alone)
