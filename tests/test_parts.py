"""The parts that a config names are built, or refused where the config names them."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, IterableDataset

from distopt import parts
from distopt.config import Component, Config, EvalConfig, validate
from distopt.errors import ConfigError
from tests.kit import run_distributed

HERE = __name__


class Numbers(Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor(index)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))

    def __len__(self):
        return 3


class Unsized(Numbers):
    def __len__(self):
        raise self.size


class UnsizedStream(Stream):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        raise self.error


def make_nothing():
    return None


def config(train=None, val=None, batch_size=4, model=None):
    data = {
        "work_dir": "run",
        "model": model or {"type": "torch.nn:Linear", "in_features": 2, "out_features": 3},
        "data": {
            "train": train or {"type": f"{HERE}:Numbers", "size": 10},
            "val": val,
            "batch_size": batch_size,
        },
        "optimizer": {"type": "SGD"},
        "max_steps": 1,
    }
    return validate(Config, data)


def error_of(function, config):
    with pytest.raises(ConfigError) as caught:
        function(config)
    return caught.value


def test_the_parts_of_a_config_are_built():
    given = config(val={"type": f"{HERE}:Numbers", "size": 2}, batch_size=10)
    assert len(parts.train_dataset(given)) == 10
    assert len(parts.val_dataset(given)) == 2
    assert isinstance(parts.model(given), nn.Linear)


def test_there_may_be_nothing_to_evaluate_on():
    assert parts.val_dataset(config()) is None


def test_an_empty_dataset_is_refused():
    empty = {"type": f"{HERE}:Numbers", "size": 0}
    error = error_of(parts.train_dataset, config(train=empty))
    assert (error.key, error.problem) == ("data.train", "the dataset is empty")
    assert error_of(parts.val_dataset, config(val=empty)).key == "data.val"


def test_what_is_no_dataset_is_refused():
    error = error_of(parts.train_dataset, config(train={"type": f"{HERE}:make_nothing"}))
    assert (error.key, error.problem) == ("data.train.type", "no dataset")


def test_a_stream_is_a_dataset():
    assert len(parts.train_dataset(config(train={"type": f"{HERE}:Stream"}, batch_size=3))) == 3


@pytest.mark.parametrize("error", [TypeError("odd"), NotImplementedError()], ids=repr)
def test_a_stream_need_not_have_a_length(error):
    assert isinstance(parts.train_dataset(config(), UnsizedStream(error)), UnsizedStream)


@pytest.mark.parametrize(
    "dataset",
    [Unsized(TypeError("odd")), Unsized(OSError("odd")), UnsizedStream(OSError("odd"))],
    ids=["map-style, of its type", "map-style", "stream"],
)
def test_a_length_that_raises_is_named(dataset):
    with pytest.raises(ConfigError, match=r"^data.train: Unsized(Stream)?.__len__\(\) raised .*Error: odd"):
        parts.train_dataset(config(), dataset)


def test_a_loss_with_parameters_is_refused():
    given = config().model_copy(
        update={"loss": Component(type="torch.nn:Linear", in_features=1, out_features=1)}
    )
    error = error_of(parts.loss, given)
    assert (error.key, error.problem) == ("loss", "has parameters of its own, which nothing would train")


def test_what_is_no_module_is_refused():
    error = error_of(parts.model, config(model={"type": f"{HERE}:make_nothing"}))
    assert (error.key, error.problem) == ("model.type", "returned no model, but a NoneType")


def test_what_is_no_metric_is_refused():
    pytest.importorskip("torchmetrics")
    evaluation = EvalConfig(every=1, metrics={"m": Component(type=f"{HERE}:make_nothing")})
    given = config().model_copy(update={"eval": evaluation})
    error = error_of(lambda config: parts.metrics(config, torch.device("cpu")), given)
    assert (error.key, error.problem) == ("eval.metrics.m.type", "returned no metric, but a NoneType")


def _refusals() -> list[str]:
    problems = []
    for wrap in (DistributedDataParallel, fully_shard, lambda model: nn.Sequential(fully_shard(model))):
        with pytest.raises(ConfigError) as error:
            parts.model(config(), wrap(nn.Linear(2, 2)))
        problems.append(error.value.problem)
    return problems


def test_a_model_that_is_wrapped_already_is_refused():
    problems = run_distributed(_refusals, world=1)[0]
    assert problems[0] == "is wrapped already (DistributedDataParallel)"
    assert problems[1:] == ["is wrapped already (FSDPLinear)"] * 2
