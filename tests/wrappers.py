"""A model that is hard to wrap, and every wrapper there is."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

WIDTH, WORDS, LENGTH = 6, 11, 5
CFG = {
    "type": "SGD",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "paramwise_cfg": {
        "norm_decay_mult": 0,
        "bias_lr_mult": 2,
        "bias_decay_mult": 0.5,
        "dwconv_decay_mult": 0.1,
        "flat_decay_mult": 0.2,
        "bypass_duplicate": True,
        "custom_keys": {
            "module.1": {"lr_mult": 0.5},
            ".position": {"decay_mult": 0, "momentum": 0.8},
            "embedding": {"lr_mult": 0.25},
        },
    },
}


class Block(nn.Module):
    """Has a tie inside, a parameter of its own of one element, and what tensor parallelism splits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 10)
        self.down = nn.Linear(10, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.unmix = nn.Linear(WIDTH, WIDTH)
        self.unmix.weight = self.mix.weight
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scale * self.down(self.up(self.norm(x)).tanh())
        return x + self.unmix(self.mix(x).tanh())


class Net(nn.Module):
    """What makes wrapping hard: ties, a child called `module`, root parameters, sizes that do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.module = nn.Sequential(Block(), Block())
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Sequential(self.first)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.module(self.embedding(tokens) + self.position)
        x = x + self.depthwise(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        x = self.second(self.first(x).tanh()) + self.frozen(x)
        return self.head(self.norm(x))


def net() -> Net:
    torch.manual_seed(1)
    return Net()


def meta_net() -> Net:
    with torch.device("meta"):
        return Net()


def mesh_of(*shape: int, names: tuple[str, ...] = ("shard",)) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def plain(model: nn.Module) -> nn.Module:
    return model


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def composable_ddp(model: nn.Module) -> nn.Module:
    return pytest.importorskip("torch.distributed._composable.replicate").replicate(model)


def composable_replicate(model: nn.Module) -> nn.Module:
    replicate = pytest.importorskip("torch.distributed._composable.replicate_with_fsdp").replicate
    for block in model.module:
        replicate(block, mesh=mesh_of(2))
    return replicate(model, mesh=mesh_of(2))


def shard(model: nn.Module) -> nn.Module:
    return fully_shard(model, mesh=mesh_of(2))


def shard_blocks(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    mesh = mesh or mesh_of(2)
    for block in model.module.children():
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def shard_grouped(model: nn.Module) -> nn.Module:
    mesh = mesh_of(2)
    fully_shard([model.embedding, model.head], mesh=mesh)
    fully_shard(list(model.module), mesh=mesh)
    return fully_shard(model, mesh=mesh)


def shard_over_four(model: nn.Module) -> nn.Module:
    return shard_blocks(model, mesh_of(4))


def hsdp(model: nn.Module) -> nn.Module:
    return shard_blocks(model, mesh_of(2, 2, names=("replicate", "shard")))


def shard_on_meta(model: nn.Module) -> nn.Module:
    sharded = shard_blocks(meta_net())
    sharded.to_empty(device="cpu")
    with torch.no_grad():
        for real, empty in zip(model.parameters(), sharded.parameters(), strict=True):
            empty.copy_(distribute_tensor(real, empty.device_mesh, empty.placements))
    return sharded


def checkpoint_blocks(model: nn.Module, *only: int) -> nn.Module:
    for i in only or range(2):
        model.module[i] = checkpoint_wrapper(model.module[i])
    return model


def checkpoint_one_block(model: nn.Module) -> nn.Module:
    return checkpoint_blocks(model, 1)


def checkpoint_everything(model: nn.Module) -> nn.Module:
    checkpoint_blocks(model)
    for name, child in list(model.named_children()):
        model.register_module(name, checkpoint_wrapper(child))
    return checkpoint_wrapper(model)


def compile_it(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compile_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compile_blocks(model: nn.Module) -> nn.Module:
    for i, block in enumerate(model.module):
        model.module[i] = torch.compile(block, backend="eager")
    return model


def tensor_parallel(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    styles = {"module.*.up": ColwiseParallel(), "module.*.down": RowwiseParallel()}
    return parallelize_module(model, mesh or mesh_of(2), styles)


def tensor_parallel_and_shard(model: nn.Module) -> nn.Module:
    mesh = mesh_of(2, 2, names=("shard", "tensor"))
    return shard_blocks(tensor_parallel(model, mesh["tensor"]), mesh["shard"])


def checkpoint_and_shard(model: nn.Module) -> nn.Module:
    return shard_blocks(checkpoint_blocks(model))


def compile_blocks_and_shard(model: nn.Module) -> nn.Module:
    return shard_blocks(compile_blocks(model))


def shard_and_compile(model: nn.Module) -> nn.Module:
    return compile_it(shard_blocks(model))


def checkpoint_compile_and_ddp(model: nn.Module) -> nn.Module:
    return ddp(compile_it(checkpoint_one_block(model)))


def ddp_and_compile(model: nn.Module) -> nn.Module:
    return compile_it(ddp(model))


def fsdp1(model: nn.Module, *, nested: bool = False, use_orig_params: bool = True) -> nn.Module:
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({Block}) if nested else None,
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
    )


OF_ONE = [plain, checkpoint_one_block, checkpoint_everything, compile_it, compile_in_place, compile_blocks]
OF_TWO = [
    *(ddp, composable_ddp, composable_replicate, shard, shard_blocks, shard_grouped, shard_on_meta),
    *(tensor_parallel, checkpoint_and_shard, compile_blocks_and_shard, shard_and_compile),
    *(checkpoint_compile_and_ddp, ddp_and_compile),
]
OF_FOUR = [shard_over_four, hsdp, tensor_parallel_and_shard]
WORLDS: dict[Callable[[nn.Module], nn.Module], int] = {
    **dict.fromkeys(OF_ONE, 1),
    **dict.fromkeys(OF_TWO, 2),
    **dict.fromkeys(OF_FOUR, 4),
}
"""Wrapper → how many ranks it is tried on."""
