"""The same runs on CUDA: NCCL, fused optimizers, bf16, and a resume."""

from __future__ import annotations

import pytest

from tests.kit import run_torchrun
from tests.runs import losses, write_config

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def run(config, *overrides: str) -> None:
    done = run_torchrun([str(config), *overrides], nproc=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cuda (nccl)" in done.stdout


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory):
    """The run directory of the small config on one GPU under ddp."""
    folder = tmp_path_factory.mktemp("gpu")
    run(write_config(folder))
    return folder / "run"


def test_losses_are_those_of_the_cpu(on_gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run_torchrun([str(write_config(tmp_path))], nproc=1)
    assert "cpu (gloo)" in done.stdout
    assert losses(on_gpu) == pytest.approx(losses(tmp_path / "run"), rel=1e-3)


@pytest.mark.parametrize(
    "override",
    ["strategy=fsdp", "strategy=single", "optimizer.foreach=true", "optimizer.capturable=true"],
)
def test_strategies_and_kernels_of_the_optimizer_give_the_same_losses(on_gpu, tmp_path, override):
    run(write_config(tmp_path), override)
    assert losses(tmp_path / "run") == pytest.approx(losses(on_gpu), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_half_precision_trains_close_to_fp32(on_gpu, tmp_path, strategy, precision):
    run(write_config(tmp_path, strategy=strategy, precision=precision))
    assert losses(tmp_path / "run") == pytest.approx(losses(on_gpu), rel=0.05)


@pytest.mark.parametrize(
    "override", ["sync_batchnorm=true", "clip_grad={max_value: 0.01}", "data.num_workers=2"]
)
def test_a_model_with_batchnorm_and_a_loss_of_its_own_trains(tmp_path, override):
    data = {"type": "tests.components:Points", "length": 70}
    path = write_config(
        tmp_path,
        model={"type": "tests.components:NormedClassifier"},
        loss={"type": "CrossEntropyLoss"},
        data={"train": data, "val": data, "batch_size": 16},
        optimizer={"type": "SGD", "lr": 0.1},
        param_scheduler=None,
        eval={
            "every": 5,
            "metrics": {"accuracy": {"type": "Accuracy", "task": "multiclass", "num_classes": 3}},
        },
    )
    run(path, override)
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_continues_with_the_same_losses(on_gpu, tmp_path, strategy):
    run(write_config(tmp_path, strategy=strategy, max_steps=6))
    run(write_config(tmp_path, strategy=strategy))
    assert losses(tmp_path / "run") == pytest.approx(losses(on_gpu), rel=1e-3)
