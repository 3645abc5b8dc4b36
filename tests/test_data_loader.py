"""The loaders over map-style datasets: steps, epochs, workers, evaluation."""

import os
import random
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from torch import multiprocessing
from torch.utils.data import Dataset, TensorDataset

from distopt.config import BatchLayout
from distopt.data import EvalLoader, TrainLoader


class Numbers(Dataset):
    """Item i is i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor(index)


def layout(batch_size, *, micro_batch_size=None, world=1):
    micro_batch_size = micro_batch_size or batch_size // world
    return BatchLayout(batch_size, micro_batch_size, batch_size // (world * micro_batch_size), world)


def steps(loader, count):
    """The first steps as nested lists of numbers: step, micro-batch, sample."""
    return [[m.batch.tolist() for m in step.micro_batches if m.samples] for step in islice(loader, count)]


def test_a_step_has_its_micro_batches():
    loader = TrainLoader(Numbers(50), layout(12, micro_batch_size=2, world=2), rank=1)

    (step,) = islice(loader, 1)

    assert step.samples == 12
    assert [(batch.shape, samples) for batch, samples, _ in step.micro_batches] == [((2,), 2)] * 3


def test_the_last_step_of_an_epoch_has_what_is_left_over():
    """9 = 8 + 1, which rank 0 has; rank 1 keeps step with a dummy."""
    parts = [
        list(islice(TrainLoader(Numbers(9), layout(8, micro_batch_size=2, world=2), rank=rank), 2))[1]
        for rank in range(2)
    ]

    assert [part.samples for part in parts] == [1, 1]
    assert [[m.samples for m in part.micro_batches] for part in parts] == [[1], [0]]
    assert [[len(m.batch) for m in part.micro_batches] for part in parts] == [[1], [1]]


@pytest.mark.parametrize(("drop_last", "expected"), [(False, 5), (True, 4)])
def test_steps_per_epoch_counts_the_last_batch_unless_it_is_dropped(drop_last, expected):
    assert TrainLoader(Numbers(50), layout(12), drop_last=drop_last).steps_per_epoch == expected


def test_epoch_is_that_of_the_step_last_yielded():
    loader = TrainLoader(Numbers(10), layout(4, micro_batch_size=4))

    assert [loader.epoch for _ in islice(loader, 7)] == [0, 0, 0, 1, 1, 1, 2]


def test_ranks_together_see_the_batches_of_one_process():
    def batches(world):
        loaders = [
            TrainLoader(Numbers(50), layout(12, micro_batch_size=3, world=world), rank=rank, seed=5)
            for rank in range(world)
        ]
        ranks = [steps(loader, 9) for loader in loaders]
        return [[x for rank in ranks for batch in rank[n] for x in batch] for n in range(9)]

    assert batches(1) == batches(2) == batches(4)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_loader_continues_after_the_step_last_yielded(num_workers):
    def loader():
        return TrainLoader(Numbers(50), layout(8, micro_batch_size=4), num_workers=num_workers)

    uninterrupted = steps(loader(), 14)
    stopped = loader()
    first = steps(stopped, 8)
    resumed = loader()
    resumed.load_state_dict([stopped.state_dict()])

    assert first + steps(resumed, 6) == uninterrupted


class Augmented(Numbers):
    """Item i is i and something random, drawn by each of the usual generators."""

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(())], dtype=torch.float64)


WORKERS = pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])


@pytest.mark.parametrize(
    ("workers", "workers_then"), [(0, 0), *(pytest.param(2, n, marks=pytest.mark.slow) for n in (0, 1, 2))]
)
def test_random_augmentation_is_continued_exactly(workers, workers_then):
    def loader(num_workers):
        return TrainLoader(Augmented(26), layout(8, micro_batch_size=4), seed=3, num_workers=num_workers)

    uninterrupted = steps(loader(workers), 9)
    stopped = loader(workers)
    first = steps(stopped, 5)
    resumed = loader(workers_then)
    resumed.load_state_dict([stopped.state_dict()])

    assert first + steps(resumed, 4) == uninterrupted


@WORKERS
def test_random_augmentation_differs_between_samples_epochs_and_seeds(num_workers):
    def values(seed):
        dataset = Augmented(8)
        loader = TrainLoader(dataset, layout(4, micro_batch_size=2), seed=seed, num_workers=num_workers)
        return [x for step in steps(loader, 4) for batch in step for item in batch for x in item[1:]]

    drawn = values(0) + values(1)

    assert len(set(drawn)) == len(drawn) == 2 * 2 * 8 * 3


def test_random_collating_is_continued_exactly_as_well():
    def noisy(samples):
        return torch.stack(samples) + torch.rand(())

    def loader():
        return TrainLoader(Numbers(26), layout(8), collate=noisy)

    uninterrupted, stopped, resumed = steps(loader(), 9), loader(), loader()
    first = steps(stopped, 5)
    resumed.load_state_dict([stopped.state_dict()])

    assert first + steps(resumed, 4) == uninterrupted


def test_random_augmentation_leaves_the_generator_that_dropout_draws_from_alone():
    def drawn(*loaders):
        torch.manual_seed(5)
        for loader in loaders:
            list(islice(loader, 3))
        return torch.rand(()).item()

    assert drawn(TrainLoader(Augmented(8), layout(4)), EvalLoader(Augmented(8), layout(4))) == drawn()


def test_a_loaded_state_tells_the_epoch():
    loader = TrainLoader(Numbers(50), layout(8))
    loader.load_state_dict([{"epoch": 3, "offset": 16}])

    assert loader.epoch == 3


@pytest.mark.slow
def test_workers_change_nothing_about_the_batches():
    def first_steps(num_workers):
        return steps(TrainLoader(Numbers(50), layout(8, micro_batch_size=4), num_workers=num_workers), 14)

    assert first_steps(2) == first_steps(0)


@pytest.mark.slow
def test_what_workers_have_read_ahead_is_not_counted():
    loader = TrainLoader(Numbers(50), layout(8, micro_batch_size=4), num_workers=2)
    steps(loader, 1)

    assert loader.state_dict() == {"epoch": 0, "offset": 8}


class Recorded(Numbers):
    """Tells of each item that is read, and by which process."""

    def __init__(self, count):
        super().__init__(count)
        self.reads = multiprocessing.SimpleQueue()

    def __getitem__(self, index):
        self.reads.put((os.getpid(), index))
        return torch.tensor(index)


@pytest.mark.slow
def test_the_next_epoch_is_read_while_the_last_batch_is_still_to_come():
    dataset = Recorded(8)
    batches = iter(TrainLoader(dataset, layout(4), num_workers=2))

    next(batches)  # one of the epoch's two steps
    read = []
    while len(read) == len(set(read)):  # nothing twice: all of the first epoch
        read.append(dataset.reads.get()[1])

    assert batches is not None  # the other step is still to come


@pytest.mark.slow
def test_the_same_workers_read_all_epochs():
    dataset = Recorded(8)
    batches = iter(TrainLoader(dataset, layout(4), num_workers=2))

    list(islice(batches, 6))  # three epochs
    pids = {dataset.reads.get()[0] for _ in range(24)}

    assert len(pids) == 2
    assert os.getpid() not in pids


def test_loading_leaves_the_global_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)

    torch.manual_seed(0)
    steps(TrainLoader(Numbers(50), layout(8, micro_batch_size=4)), 3)
    list(EvalLoader(Numbers(50), layout(4)))

    assert torch.rand(1) == expected


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 4, 7, 10, 13])
def test_the_weighted_mean_over_ranks_is_the_mean_over_the_dataset(count, world):
    parts = [EvalLoader(Numbers(count), layout(2 * world, world=world), rank=rank) for rank in range(world)]
    weighted = [(samples * batch.double().mean(), samples) for part in parts for batch, samples, _ in part]

    assert sum(samples for _, samples in weighted) == count
    assert sum(value for value, _ in weighted) / count == pytest.approx((count - 1) / 2)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_every_rank_runs_equally_many_forwards_none_of_them_empty(world):
    parts = [list(EvalLoader(Numbers(7), layout(2 * world, world=world), rank=rank)) for rank in range(world)]

    assert len({len(part) for part in parts}) == 1
    assert all(len(m.batch) > 0 for part in parts for m in part)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_counts_every_sample_once_in_every_world(world):
    parts = [EvalLoader(Numbers(7), layout(2 * world, world=world), rank=rank) for rank in range(world)]

    assert sorted(i for part in parts for m in part if m.samples for i in m.batch.tolist()) == [*range(7)]


@pytest.mark.slow
def test_evaluating_again_with_workers_gives_the_same_batches():
    loader = EvalLoader(Numbers(7), layout(2), num_workers=2)

    first, second = ([(batch.tolist(), samples) for batch, samples, _ in loader] for _ in range(2))

    assert first == second == [([0, 1], 2), ([2, 3], 2), ([4, 5], 2), ([6], 1)]


def test_batches_of_tuples_come_as_the_dataset_gives_them():
    dataset = TensorDataset(torch.arange(6), torch.arange(6) * 2)
    (step,) = islice(TrainLoader(dataset, layout(6)), 1)
    inputs, targets = step.micro_batches[0].batch

    assert torch.equal(targets, inputs * 2)


def padded(samples, value):
    return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=value)


def test_a_collate_of_ones_own_makes_the_batches():
    ragged = [torch.ones(1 + i % 3) for i in range(6)]

    train = TrainLoader(ragged, layout(6), collate=partial(padded, value=-1.0))
    (step,) = islice(train, 1)
    [evaluated] = EvalLoader(ragged, layout(6), collate=partial(padded, value=-1.0))

    assert step.micro_batches[0].batch.shape == evaluated.batch.shape == (6, 3)


def test_a_dataset_that_gives_many_items_at_once_is_asked_for_them_at_once():
    class Many(Numbers):
        def __getitems__(self, indices):
            return [torch.tensor(10 * i) for i in indices]

    [evaluated] = EvalLoader(Many(3), layout(3))

    assert evaluated.batch.tolist() == [0, 10, 20]


@pytest.mark.parametrize(("size", "expected"), [(1, [0]), (3, [0, 1, 2])])
def test_the_first_batch_is_as_large_as_a_micro_batch(size, expected):
    loader = TrainLoader(Numbers(10), layout(6, micro_batch_size=size))
    assert loader.first_batch().tolist() == expected
