"""The repeated blocks of a model: which there are, and that wrapping hides none."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from distopt.blocks import find_blocks
from tests.kit import run_distributed


class Block(nn.Module):
    def __init__(self, width: int = 4, inner: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class Stage(nn.Module):
    """Halves the resolution, then repeats a block."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.downsample = nn.Linear(width // 2, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))


class Mixture(nn.Module):
    """A block with experts; without them it is one feed-forward network."""

    def __init__(self, experts: int, width: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, max(experts, 1))
        self.experts = nn.ModuleList(Block(width) for _ in range(experts))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 4)


class Net(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(4, 8)


def paths(model: nn.Module) -> list[str]:
    return [block.prefix.removesuffix(".") for block in find_blocks(model)]


@pytest.mark.parametrize("container", [nn.ModuleList, lambda layers: nn.Sequential(*layers)])
def test_like_children_of_a_list_or_sequence_are_blocks(container):
    assert paths(container([Block(), Block()])) == ["0", "1"]


def test_leaves_are_no_blocks():
    assert paths(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []


def test_modules_without_parameters_are_no_blocks():
    assert paths(nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU()))) == []


def test_one_alone_is_no_block():
    assert paths(Net(Block(), Attention())) == []


def test_a_module_that_is_used_again_is_no_sibling_of_itself():
    block = Block()
    assert paths(Net(block, block)) == []


def test_children_of_a_dict_whose_keys_are_numbers_are_blocks():
    assert paths(nn.ModuleDict({"0": Block(), "1": Block()})) == ["0", "1"]
    assert paths(nn.ModuleDict({"4": Block(), "7": Block(), "head": Block()})) == []


def test_attributes_of_a_module_are_no_blocks():
    assert paths(nn.ModuleDict({"a": Block(), "b": Block()})) == []


def test_other_children_of_the_container_are_passed_by():
    assert paths(Net(Block(), Attention(), Block(), nn.Linear(4, 4))) == ["layers.0", "layers.2"]


def test_blocks_of_two_classes_come_in_the_order_of_the_walk():
    layers = (Block(), Attention(), Block(), Attention())
    assert paths(Net(*layers)) == ["layers.0", "layers.1", "layers.2", "layers.3"]


def test_experts_are_a_part_of_their_block():
    assert paths(Net(Mixture(2), Mixture(2))) == ["layers.0", "layers.1"]


def test_experts_are_a_part_of_their_block_where_no_two_blocks_are_alike():
    assert paths(Net(Mixture(0), Mixture(2))) == ["layers.0", "layers.1"]


def test_of_stages_it_is_the_blocks_inside_that_count():
    assert paths(nn.Sequential(Stage(4, 2), Stage(8, 3))) == [
        "0.blocks.0",
        "0.blocks.1",
        "1.blocks.0",
        "1.blocks.1",
        "1.blocks.2",
    ]


def test_a_block_alone_in_its_stage_is_known_by_its_class():
    found = paths(nn.Sequential(Stage(4, 1), Stage(8, 2), Stage(16, 1)))
    assert found == ["0.blocks.0", "1.blocks.0", "1.blocks.1", "2.blocks.0"]


def test_stages_with_nothing_repeated_inside_are_blocks_themselves():
    assert paths(nn.Sequential(Stage(4, 1), Stage(8, 1))) == ["0", "1"]


def test_groups_of_blocks_that_are_alike_are_blocks():
    assert paths(nn.Sequential(Stage(4, 2), Stage(4, 2), Stage(8, 2))) == ["0", "1", "2"]


def test_layers_of_different_widths_with_nothing_repeated_inside_are_blocks():
    assert paths(Net(Block(inner=8), Block(inner=12))) == ["layers.0", "layers.1"]


def pyramid() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), Stage(4, 1), Stage(8, 2), nn.LayerNorm(8))


PYRAMID = ["1.blocks.0", "2.blocks.0", "2.blocks.1"]


def test_meta_parameters_do():
    with torch.device("meta"):
        assert paths(pyramid()) == PYRAMID


def test_compiling_hides_no_block():
    model = pyramid()
    model[2].blocks[1] = torch.compile(model[2].blocks[1], backend="eager")
    model[1] = torch.compile(model[1], backend="eager")
    assert paths(torch.compile(model, backend="eager")) == PYRAMID


def test_activation_checkpointing_hides_no_block():
    model = pyramid()
    model[2].blocks[0] = checkpoint_wrapper(model[2].blocks[0])
    model[2] = checkpoint_wrapper(model[2])
    assert paths(model) == PYRAMID


def _paths_under_ddp_and_fsdp() -> list[list[str]]:
    mesh = init_device_mesh("cpu", (2,))
    some, all_of_it = pyramid(), pyramid()
    fully_shard(some[2].blocks[0], mesh=mesh)
    fully_shard(all_of_it, mesh=mesh)
    return [paths(model) for model in (DistributedDataParallel(pyramid()), some, all_of_it)]


def test_ddp_and_fsdp_hide_no_block():
    assert run_distributed(_paths_under_ddp_and_fsdp) == [[PYRAMID] * 3] * 2
