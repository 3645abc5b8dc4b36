"""What the user's dataset and collate do wrong is said in the user's words, wherever it was read."""

import inspect
import os
import signal
from itertools import islice

import pytest
import torch

from distopt.config import BatchLayout
from distopt.data import EvalLoader, TrainLoader
from distopt.errors import ConfigError

FOUR = BatchLayout(4, 4, 1, 1)


class PickyError(Exception):
    """Cannot be rebuilt from its text, as a worker's exceptions are."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Dataset:
    """Item i is made by a function."""

    def __init__(self, make, count=8):
        self.make = make
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.make(index)


class Stream:
    """Yields what a function makes."""

    def __init__(self, make, count=8):
        self.make = make
        self.count = count

    def __iter__(self):
        return map(self.make, range(self.count))


def fails_at(bad):
    def make(index):
        if index == bad:
            raise PickyError("bad", index)
        return torch.tensor(index)

    return make


def place_of(function):
    """`file:line` of the third line of a function, where those here raise."""
    return f"{__file__}:{inspect.getsourcelines(function)[1] + 2}"


def error_of(batches):
    with pytest.raises(ConfigError) as caught:
        list(islice(batches, 8))
    return caught.value


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_dataset_that_raises_is_named_with_the_item_and_the_place(num_workers):
    make = fails_at(5)

    error = error_of(TrainLoader(Dataset(make), FOUR, num_workers=num_workers))

    assert error.key == "data.train"
    assert error.problem == f"Dataset.__getitem__(5) raised PickyError: bad and 5 ({place_of(make)})"


def test_in_evaluation_it_is_the_key_of_the_evaluation_data():
    assert error_of(EvalLoader(Dataset(fails_at(5)), FOUR)).key == "data.val"


def test_a_dataset_that_is_asked_for_many_items_is_named_with_all_of_them():
    class Many(Dataset):
        def __getitems__(self, indices):
            raise KeyError("x")

    error = error_of(EvalLoader(Many(None), FOUR))

    assert error.problem.startswith("Many.__getitems__([0, 1, 2, 3]) raised KeyError: 'x'")


def test_a_dataset_that_gives_another_number_of_items_than_asked_is_an_error():
    class Many(Dataset):
        def __getitems__(self, indices):
            return [torch.tensor(index) for index in indices[1:]]

    error = error_of(EvalLoader(Many(None), FOUR))

    assert error.key == "data.val"
    assert error.problem == (
        "Many.__getitems__([0, 1, 2, 3]) returned another number of samples than it was asked for"
    )
    assert (error.given, error.allowed) == (3, "4")


@pytest.mark.slow
def test_a_worker_says_what_is_said_without_one():
    with_workers, without = (
        error_of(TrainLoader(Dataset(fails_at(5)), FOUR, num_workers=workers)) for workers in (2, 0)
    )

    assert str(with_workers) == str(without)


def ragged(samples):
    first, *others = samples
    raise PickyError(len(first), len(others))


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_collate_that_raises_is_named_with_its_samples_and_the_place(num_workers):
    dataset = Dataset(torch.ones)

    error = error_of(EvalLoader(dataset, FOUR, num_workers=num_workers, collate=ragged))

    assert error.key == "data.collate"
    assert error.problem == (
        f"ragged, given samples 0, 1, 2, 3, raised PickyError: 0 and 3 ({place_of(ragged)})"
    )


def test_only_some_of_many_samples_are_written_out():
    error = error_of(EvalLoader(Dataset(torch.ones, 99), BatchLayout(20, 20, 1, 1), collate=ragged))

    assert "given samples 0, 1, 2, 3, 4, 5, 6, 7, … (20 in all), raised" in error.problem


def test_samples_of_different_shapes_are_named_and_a_collate_is_proposed():
    error = error_of(EvalLoader(Dataset(lambda i: {"x": torch.ones(3 + (i == 2)), "y": i}), FOUR))

    assert error.key == "data.val"
    assert error.problem == "samples 0 and 2 do not fit into one batch"
    assert error.given == "{x: Tensor(3), y: int} and {x: Tensor(4), y: int}"
    assert "data.collate" in error.allowed


def test_samples_that_torch_makes_no_batch_of_are_an_error():
    error = error_of(EvalLoader(Dataset(lambda i: {"x": object()}), FOUR))

    assert error.problem.startswith("torch's default_collate raised TypeError")
    assert error.given == "{x: object}"


@pytest.mark.parametrize("odd", [{"x": 0}, {"x": 0, "y": 0, "z": 0}, 0])
def test_a_sample_with_other_keys_than_the_first_is_an_error(odd):
    error = error_of(EvalLoader(Dataset(lambda i: odd if i == 2 else {"x": 0, "y": 0}), FOUR))

    assert error.problem == "sample 2 has other keys than sample 0"
    assert error.allowed == "{x: int, y: int}"


def test_a_batch_with_other_keys_than_the_first_is_an_error():
    error = error_of(EvalLoader(Dataset(lambda i: {"x": i} if i < 4 else {"x": i, "y": i}), FOUR))

    assert error.key == "data.val"
    assert error.problem == "the batch of samples 4, 5, 6, 7 has other keys than the first one"
    assert error.allowed == "{x: Tensor(4)}"


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_that_raises_is_named_with_the_samples_before_and_the_place(num_workers):
    make = fails_at(5)

    error = error_of(TrainLoader(Stream(make), FOUR, num_workers=num_workers))

    assert error.key == "data.train"
    assert (
        error.problem == f"Stream.__iter__, after 5 samples, raised PickyError: bad and 5 ({place_of(make)})"
    )


@pytest.mark.parametrize(("loader", "key"), [(TrainLoader, "data.train"), (EvalLoader, "data.val")])
def test_a_stream_that_yields_nothing_is_an_error(loader, key):
    error = error_of(loader(Stream(torch.tensor, 0), FOUR))

    assert (error.key, error.problem) == (key, "the dataset yields nothing")


def test_a_stream_that_can_be_read_but_once_is_an_error_that_names_the_pass():
    class Once(Stream):
        def __init__(self):
            self.samples = map(torch.tensor, range(6))

        def __iter__(self):
            return self.samples

    error = error_of(TrainLoader(Once(), FOUR))

    assert (error.key, error.problem) == ("data.train", "the dataset yields nothing in pass 2")


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_pass_smaller_than_the_batch_is_an_error(drop_last):
    error = error_of(TrainLoader(Stream(torch.tensor, 3), FOUR, drop_last=drop_last))

    assert (error.key, error.given, error.allowed) == ("data.batch_size", 4, "at most 3")


def test_a_shard_that_cannot_be_had_is_an_error_that_names_it():
    class Few(Stream):
        def shard(self, num_shards, index):
            raise IndexError("there are but two files")

    error = error_of(TrainLoader(Few(torch.tensor), BatchLayout(4, 1, 1, 4), rank=3))

    assert error.problem.startswith("Few.shard(num_shards=4, index=3) raised IndexError: there are but two")


@pytest.mark.parametrize("state", [(1, 2), {1: 2}, {"x": torch.ones(2)}, b"abc"])
def test_a_state_that_is_no_plain_data_is_an_error(state):
    class Stateful(Stream):
        def state_dict(self):
            return state

    error = error_of(TrainLoader(Stateful(torch.tensor), FOUR))

    assert error.problem == "Stateful.state_dict() returned what does not survive as JSON"


def test_a_state_that_the_dataset_does_not_take_is_an_error():
    class Stateful(Stream):
        def state_dict(self):
            return {"at": 1}

        def load_state_dict(self, state):
            raise KeyError("position")

    loader = TrainLoader(Stateful(torch.tensor), FOUR)
    loader.load_state_dict([{"epoch": 0, "offset": 4, "dataset": {"at": 1}}])

    assert error_of(loader).problem.startswith("Stateful.load_state_dict() raised KeyError: 'position'")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_no_mistake_of_the_user():
    def killed(index):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(EvalLoader(Dataset(killed), FOUR, num_workers=1))
