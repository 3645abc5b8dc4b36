"""Batches on their way to the device."""

from collections import UserDict, namedtuple
from itertools import islice

import pytest
import torch

from distopt.config import BatchLayout
from distopt.data import EvalLoader, TrainLoader
from distopt.data.device import to_device

Pair = namedtuple("Pair", "first second")
META = torch.device("meta")


class Graph:
    """Moves itself, as the batches of graph libraries do."""

    def __init__(self, nodes):
        self.nodes = nodes

    def to(self, device):
        return Graph(self.nodes.to(device))


def test_every_tensor_of_a_nested_batch_is_moved():
    batch = {"pair": Pair(torch.ones(2), [torch.ones(1)]), "both": (torch.ones(1), "text")}

    moved = to_device(batch, META)

    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].first.is_meta
    assert moved["pair"].second[0].is_meta
    assert moved["both"][0].is_meta
    assert moved["both"][1] == "text"


def test_any_mapping_becomes_a_dict():
    moved = to_device(UserDict(ids=torch.ones(2)), META)

    assert type(moved) is dict
    assert moved["ids"].is_meta


def test_what_can_move_itself_does():
    assert to_device(Graph(torch.ones(3)), META).nodes.is_meta


@pytest.mark.gpu
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_arrive_on_the_gpu_as_they_were(num_workers):
    """Large ones, computed with for longer than the next copy takes: nothing is overwritten too early."""
    dataset = [torch.full((256, 256), float(i)) for i in range(64)]
    loader = TrainLoader(dataset, BatchLayout(16, 8, 2, 1), device="cuda", num_workers=num_workers)
    weight = torch.eye(256, device="cuda")

    seen = []
    for step in islice(loader, 12):
        for batch, *_ in step.micro_batches:
            for _ in range(50):
                batch = batch @ weight
            seen.append(batch.mean(dim=(1, 2)))

    epochs = torch.cat(seen).reshape(3, 64).sort().values
    assert epochs.tolist() == [[float(i) for i in range(64)]] * 3


@pytest.mark.gpu
def test_evaluation_batches_arrive_on_the_gpu():
    evaluated = list(EvalLoader([torch.ones(2)] * 5, BatchLayout(2, 2, 1, 1), device="cuda"))

    assert [m.samples for m in evaluated] == [2, 2, 1]
    assert all(m.batch.is_cuda for m in evaluated)
