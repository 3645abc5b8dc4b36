"""FQNs and ties, whatever wraps the model."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from distopt import ConfigError, names
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
    return list(names.live_parameters(names.visits(model)))


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


class Measured(DistributedDataParallel):
    """A wrapper with a child beside the model."""

    def __init__(self, model: nn.Module, further: nn.Module) -> None:
        super().__init__(model)
        self.further = further
        self.part = model.module  # the model's own


def _fqns_beside_a_further_child() -> tuple[list[str], list[str], str]:
    checkpointed = checkpoint_wrapper(Net())
    checkpointed.further = nn.Identity()
    with pytest.raises(ConfigError) as error:
        fqns(Measured(Net(), nn.Linear(1, 1)))
    return fqns(Measured(Net(), nn.Identity())), fqns(checkpointed), error.value.problem


def test_a_wrapper_may_have_children_of_its_own_without_parameters():
    for ddp, checkpointed, refusal in run_distributed(_fqns_beside_a_further_child):
        assert ddp == checkpointed == FQNS
        assert refusal == "the wrapper Measured has parameters of its own: further.weight, further.bias"


def test_children_that_are_none_or_empty_are_no_wrappers():
    model = nn.Module()
    model.register_module("_orig_mod", None)
    model.layers = nn.ModuleList()
    assert names.unwrap(model) is model


def _fqns_under_ddp_and_fsdp() -> tuple[list[str], list[str], list[tuple[str, ...]], list[str]]:
    sharded = Net()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(sharded.module[1], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    walk = names.visits(sharded)
    types = [names.module_type(visit.module).__name__ for visit in walk]
    return fqns(DistributedDataParallel(Net())), fqns(sharded), names.ties(walk), types


def test_ddp_and_fsdp_leave_names_types_and_ties_alone():
    for ddp, fsdp, ties, types in run_distributed(_fqns_under_ddp_and_fsdp):
        assert ddp == FQNS
        assert fsdp == FQNS
        assert ties == [("embedding.weight", "head.weight")]
        assert types == ["Net", "Embedding", "Sequential", "Linear", "LayerNorm", "Linear"]


def test_a_module_met_twice_under_one_parent_is_not_distinct():
    layer = nn.Linear(2, 2)
    assert [(visit.prefix, visit.distinct) for visit in names.visits(nn.Sequential(layer, layer))] == [
        ("", True),
        ("0.", True),
        ("1.", False),
    ]


def test_what_is_inside_a_module_met_twice_is_not_distinct_either():
    block = nn.Sequential(nn.Linear(2, 2))
    walk = names.visits(nn.Sequential(block, block))
    assert [visit.prefix for visit in walk if not visit.distinct] == ["1.", "1.0."]


def test_a_module_met_under_two_parents_is_distinct():
    layer = nn.Linear(2, 2)
    walk = names.visits(nn.ModuleList([nn.Sequential(layer), nn.Sequential(layer)]))
    assert all(visit.distinct for visit in walk)


def test_the_walk_gives_parents_as_their_author_wrote_them():
    parents = {visit.prefix: visit.parent for visit in names.visits(checkpoint_wrapper(Net()))}
    assert parents[""] is None
    assert isinstance(parents["head."], Net)
    assert isinstance(parents["module.0."], nn.Sequential)
