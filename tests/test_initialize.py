"""A model that is sharded on the meta device starts as it would on one process, in any world, bit by bit."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from benchmarks import memory
from distopt import ConfigError, names, parallel
from distopt.config import StrategyConfig
from distopt.models import ByteGPT
from tests.components import Windows
from tests.kit import run_distributed, run_torchrun
from tests.runs import CONFIG, losses, train, train_alone, write_config

CPU = torch.device("cpu")
FSDP = StrategyConfig(type="fsdp")
FSDP_ON_META = StrategyConfig(type="fsdp", meta_init=True)
HSDP = StrategyConfig(type="hsdp", shard_size=2)
worlds = pytest.mark.parametrize(
    ("strategy", "world"),
    [(FSDP, 2), (FSDP, 4), (HSDP, 4)],
    ids=["fsdp of 2", "fsdp of 4", "hsdp of 2 × 2"],
)


def byte_gpt() -> nn.Module:
    return ByteGPT(context=8, width=16, depth=2, heads=2)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=12, n_positions=7, vocab_size=31))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=12,
            intermediate_size=18,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=31,
        )
    )


class Layers(nn.Module):
    """Modules that initialise themselves in many ways; sizes that do not divide, or are 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5, padding_idx=2)
        self.head = nn.Linear(5, 7)
        self.head.weight = self.embedding.weight
        self.recurrent = nn.LSTM(5, 3, num_layers=2)
        self.convolution = nn.Conv2d(3, 5, 3)
        self.batch_norm = nn.BatchNorm2d(5)
        self.attention = nn.MultiheadAttention(6, 2)
        self.attention.reset_parameters = self.attention._reset_parameters  # type: ignore[method-assign, assignment]
        self.attention.out_proj.bias.requires_grad_(False)
        self.single = nn.PReLU()


class Drawn(nn.Module):
    """Draws numbers in ways that look at all of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.orthogonal = nn.Parameter(torch.empty(7, 4))
        self.truncated = nn.Parameter(torch.empty(5, 5))
        self.sparse = nn.Parameter(torch.empty(9, 3))
        self.register_buffer("noise", torch.empty(3))

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.orthogonal)
        nn.init.trunc_normal_(self.truncated, std=0.02)
        nn.init.sparse_(self.sparse, sparsity=0.3)
        nn.init.uniform_(self.noise)


class Rewritten(nn.Module):
    """Sets values by views, by assignment and from one another, all parameters at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(5))
        self.scale = nn.Parameter(torch.empty(1))

    def init_weights(self) -> None:
        self.scale.data = torch.rand(1)
        first, *others = self.layers
        views = [layer.weight.data for layer in others]
        with torch.no_grad():
            first.weight.copy_(torch.randn(5, 5))
            for view in views:
                view[1:].mul_(2).add_(first.weight[:-1])
            others[1].weight.copy_(others[0].weight.t())
            others[2].weight[:, 0] = others[1].weight.norm()
            others[3].weight.data = others[3].weight.data.double().cumsum(0).float()
            torch._foreach_mul_([layer.bias for layer in self.layers], self.scale[0])
            nn.init.normal_(others[0].bias, std=float(first.bias.abs().max()))
            others[1].bias[2:].numpy()[:] = 3


class ByType(nn.Sequential):
    """Knows its blocks by their very class."""

    def __init__(self) -> None:
        super().__init__(*(Block(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3)))

    def _init_weights(self, module: nn.Module) -> None:
        if type(module) is Block:
            nn.init.normal_(module[0].weight)


class Block(nn.Sequential):
    pass


class Forgotten(nn.Module):
    """Has one parameter and a mask too many."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.ones(3))
        self.mask = nn.Parameter(torch.ones(3, dtype=torch.bool), requires_grad=False)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, whole; and the next random number."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    whole = {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in tensors.items()
    }
    return whole | {"the next random number": torch.rand(1)}


def started(model: nn.Module, strategy: StrategyConfig) -> nn.Module:
    torch.manual_seed(3)
    tied = names.ties(names.visits(model))
    wrapped = parallel.wrap(model, strategy, CPU)
    names.check_ties(wrapped, tied, after="the start")
    return wrapped


def alone(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(3)
    parallel.materialize(model)
    return state(model)


def _started(make: Callable[[], nn.Module], strategy: StrategyConfig) -> dict[str, Tensor]:
    return state(started(on_meta(make), strategy))


@worlds
@pytest.mark.parametrize("make", [byte_gpt, gpt2, llama, Layers, Drawn, Rewritten, ByType])
def test_the_values_are_those_of_one_process(make, strategy, world):
    if make in (gpt2, llama):
        pytest.importorskip("transformers")
    expected = alone(on_meta(make))
    for found in run_distributed(_started, make, strategy, world=world):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def _refusal(make: Callable[[], nn.Module]) -> str:
    with pytest.raises(ConfigError) as error:
        started(on_meta(make), FSDP)
    return str(error.value)


class Replacing(nn.Linear):
    """Puts another parameter in the place of its own."""

    def __init__(self) -> None:
        super().__init__(3, 3)

    def init_weights(self) -> None:
        self.weight = nn.Parameter(torch.ones(3, 3))


def test_a_parameter_that_is_replaced_is_an_error():
    for refusal in run_distributed(_refusal, Replacing):
        assert "put an unsharded parameter in the place of weight" in refusal


class Retyping(Replacing):
    """Gives a parameter another dtype."""

    def init_weights(self) -> None:
        self.weight.data = torch.ones(3, 3).half()


def test_a_parameter_that_becomes_another_dtype_is_an_error():
    for refusal in run_distributed(_refusal, Retyping):
        assert "a sharded parameter stays a torch.float32 of shape (3, 3)" in refusal


@pytest.mark.skipif(torch.__version__ < "2.13", reason="this torch shards parameters of floating point only")
def test_what_nothing_initialises_is_the_same_error_on_every_rank():
    refusals = run_distributed(_refusal, Forgotten, world=4)
    assert "nothing initialises gain, mask" in refusals[0]
    assert set(refusals) == {refusals[0]}


def partly_real() -> nn.Module:
    model = on_meta(lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)))
    real = {"1.weight": torch.full((3, 3), 7.0), "2.running_mean": torch.full((3,), 5.0)}
    model.load_state_dict(real, assign=True, strict=False)
    return model


def _started_as_given(make: Callable[[], nn.Module], strategy: StrategyConfig) -> dict[str, Tensor]:
    return state(started(make(), strategy))


def test_what_is_real_keeps_its_values():
    expected = alone(partly_real())
    for found in run_distributed(_started_as_given, partly_real, FSDP):
        assert found["1.weight"].unique().tolist() == [7]
        assert found["2.running_mean"].unique().tolist() == [5]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_shards_that_stay_in_the_hosts_memory_get_theirs():
    expected = alone(on_meta(byte_gpt))
    for found in run_distributed(_started, byte_gpt, StrategyConfig(type="fsdp", cpu_offload=True)):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3))


def test_what_is_not_sharded_is_initialised_too():
    strategy = StrategyConfig(type="fsdp", ignored=["0.*"])
    expected = alone(on_meta(frozen))
    for found in run_distributed(_started, frozen, strategy):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Watched(nn.Linear):
    """Looks at how many weights are whole after each one's initialisation."""

    storages: ClassVar[list[weakref.ref[torch.UntypedStorage]]] = []
    whole: ClassVar[list[int]] = []

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.storages.append(weakref.ref(self.weight.data.untyped_storage()))
        self.whole.append(sum(storage() is not None for storage in self.storages))


def _whole_at_a_time() -> list[int]:
    started(on_meta(lambda: nn.Sequential(*(Watched(4, 4, bias=False) for _ in range(5)))), FSDP)
    return Watched.whole[-5:]


def test_few_parameters_are_whole_at_a_time():
    assert run_distributed(_whole_at_a_time) == [[1, 2, 2, 2, 2]] * 2


@pytest.mark.system
def test_the_whole_model_is_never_in_memory():
    model = {"width": 512, "depth": 8, "heads": 8, "context": 16}
    found = memory.Start(*memory.on_ranks(4, memory.start, model, FSDP_ON_META))
    assert found.part == found.whole / 4
    assert found.peak < found.whole / 2


def _units_are_sharded_still() -> bool:
    model = started(on_meta(ByType), FSDP)
    model(torch.randn(2, 4)).sum().backward()
    return all(isinstance(module, FSDPModule) for module in [model, *model])


def test_the_model_is_sharded_after_its_start():
    assert all(run_distributed(_units_are_sharded_still))


class Drawing(Windows):
    """Draws random numbers while it is built, as many as the rank's number."""

    def __init__(self) -> None:
        super().__init__(length=64)
        torch.rand(int(os.environ.get("RANK", "7")))


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp"])
def test_a_run_is_that_of_one_process_whatever_its_data_draw(tmp_path, strategy):
    data = {**CONFIG["data"], "train": {"type": f"{__name__}:Drawing"}}
    config = write_config(tmp_path, data=data)
    train_alone(config, f"work_dir={tmp_path / 'alone'}", "strategy={type: single, meta_init: true}")
    run_distributed(train, config, f"strategy={{type: {strategy}, meta_init: true}}")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("options", ["", ", cpu_offload: true"])
def test_a_run_on_a_gpu_starts_with_the_values_of_the_cpu(tmp_path, monkeypatch, options):
    config = str(write_config(tmp_path))
    strategy = f"strategy={{type: fsdp, meta_init: true{options}}}"
    assert run_torchrun([config, strategy], nproc=1).returncode == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    alone = f"work_dir={tmp_path / 'alone'}", "strategy={type: single, meta_init: true}"
    assert run_torchrun([config, *alone], nproc=1).returncode == 0
    assert losses(tmp_path / "run")[0] == pytest.approx(losses(tmp_path / "alone")[0], rel=1e-5)
