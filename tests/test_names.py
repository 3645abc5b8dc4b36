"""FQNs and ties, whatever wraps the model."""

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from distopt import names
from tests.kit import run_distributed


class Net(nn.Module):
    """Embedding and head are tied; a child is called `module`, as DDP's is."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.module(self.embedding(tokens)))


FQNS = [
    "embedding.weight",
    "module.0.weight",
    "module.0.bias",
    "module.1.weight",
    "module.1.bias",
    "head.weight",
]


def fqns(model: nn.Module) -> list[str]:
    return [site.fqn for site in names.walk(model)]


def test_the_walk_names_every_place_of_a_shared_parameter():
    assert fqns(Net()) == FQNS


def test_a_child_called_module_is_kept_in_the_names():
    assert "module.0.weight" in fqns(Net())


def test_compile_leaves_the_names_alone():
    assert fqns(torch.compile(Net(), backend="eager")) == FQNS


def test_activation_checkpointing_leaves_the_names_alone():
    model = Net()
    model.module[0] = checkpoint_wrapper(model.module[0])
    model.module = checkpoint_wrapper(model.module)
    assert fqns(model) == FQNS


def _fqns_under_ddp_and_fsdp() -> tuple[list[str], list[str], list[tuple[str, ...]], list[str]]:
    sharded = Net()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(sharded.module[1], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    types = [names.module_type(site.owner).__name__ for site in names.walk(sharded)]
    return fqns(DistributedDataParallel(Net())), fqns(sharded), names.ties(sharded), types


def test_ddp_and_fsdp_leave_names_types_and_ties_alone():
    for ddp, fsdp, ties, types in run_distributed(_fqns_under_ddp_and_fsdp):
        assert ddp == FQNS
        assert fsdp == FQNS
        assert ties == [("embedding.weight", "head.weight")]
        assert types == ["Embedding", "Linear", "Linear", "LayerNorm", "LayerNorm", "Linear"]


def test_a_tensor_met_twice_in_one_module_is_not_distinct():
    module = nn.Linear(2, 2)
    module.again = module.weight
    assert [(site.fqn, site.distinct) for site in names.walk(module)] == [
        ("weight", True),
        ("bias", True),
        ("again", False),
    ]


def test_a_module_met_twice_under_one_parent_is_not_distinct():
    layer = nn.Linear(2, 2, bias=False)
    assert [(site.fqn, site.distinct) for site in names.walk(nn.Sequential(layer, layer))] == [
        ("0.weight", True),
        ("1.weight", False),
    ]
