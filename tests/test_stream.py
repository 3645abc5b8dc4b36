"""Streams: the same samples in any world, resumed exactly, read whole or by shards."""

from itertools import chain, islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, get_worker_info

from distopt.config import BatchLayout
from distopt.data import EvalLoader, TrainLoader, is_stream
from distopt.errors import ConfigError
from tests.test_sampler import layouts, one_process


class Counting:
    """Yields 0, 1, …, each pass again."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


class Shuffled(Counting):
    """Another order in every epoch."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())


class Resumable(Shuffled):
    """Knows its position, and continues there without reading what was before."""

    position, reads = 0, 0

    def __iter__(self):
        order = list(super().__iter__())
        while self.position < self.count:
            self.position += 1
            self.reads += 1
            yield order[self.position - 1]
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class StaysAtItsEnd(Resumable):
    """Goes back to the start of a pass only when the next begins."""

    loaded = 0

    def __iter__(self):
        self.position, self.loaded = self.loaded, 0
        for sample in list(Shuffled.__iter__(self))[self.position :]:
            self.position += 1
            yield sample

    def load_state_dict(self, state):
        self.loaded = state["position"]


class Sharded(Resumable):
    """Every num_shards-th number; `Resumable` in each shard."""

    def __init__(self, count, num_shards=1, index=0):
        super().__init__(len(range(index, count, num_shards)))
        self.total, self.num_shards, self.index = count, num_shards, index

    def shard(self, num_shards, index):
        return Sharded(self.total, num_shards, index)

    def __iter__(self):
        return (sample * self.num_shards + self.index for sample in super().__iter__())


KINDS = [Counting, Shuffled, Resumable, StaysAtItsEnd]


def samples_of(steps):
    return [[x for m in step.micro_batches if m.samples for x in m.batch.tolist()] for step in steps]


def flat(lists):
    return list(chain.from_iterable(lists))


def ranks_of(dataset, layout, states=None, **options):
    """A loader for each rank, each with a dataset of its own, as in processes of their own."""
    loaders = [TrainLoader(dataset(), layout, rank=rank, **options) for rank in range(layout.world)]
    for loader in loaders:
        if states:
            loader.load_state_dict(states)
    return loaders


def global_batches(loaders, count):
    """What the ranks have of the next global batches, in ascending order."""
    ranks = [samples_of(islice(loader, count)) for loader in loaders]
    return [sorted(flat(parts)) for parts in zip(*ranks, strict=True)]


extra = st.integers(0, 30)
kinds = st.sampled_from(KINDS)


@given(kinds, layouts(), extra, st.booleans())
def test_every_world_sees_the_same_global_batches(kind, layout, extra, drop_last):
    def first_steps(layout):
        return global_batches(ranks_of(lambda: kind(count), layout, drop_last=drop_last), 7)

    count = layout.batch_size + extra

    assert first_steps(layout) == first_steps(one_process(layout.batch_size))


@given(kinds, layouts(), extra)
def test_a_pass_has_every_sample_once(kind, layout, extra):
    count = layout.batch_size + extra
    steps = -(-count // layout.batch_size)

    batches = global_batches(ranks_of(lambda: kind(count), layout), 2 * steps)

    assert sorted(flat(batches[:steps])) == sorted(flat(batches[steps:])) == list(range(count))


@given(layouts(), extra)
def test_a_stream_is_cut_up_as_a_map_style_dataset_is(layout, extra):
    count = layout.batch_size + extra

    def shapes(dataset, rank):
        steps = islice(TrainLoader(dataset, layout, rank=rank), 6)
        return [(step.samples, [(len(m.batch), m.samples) for m in step.micro_batches]) for step in steps]

    for rank in range(layout.world):
        assert shapes(Counting(count), rank) == shapes(range(count), rank)


def test_the_ranks_take_the_samples_of_a_stream_in_turn():
    parts = [
        samples_of(islice(loader, 2)) for loader in ranks_of(lambda: Counting(7), BatchLayout(4, 2, 1, 2))
    ]

    assert parts == [[[0, 2], [4, 6]], [[1, 3], [5]]]


@given(kinds, layouts(), extra, st.integers(1, 8), st.booleans())
def test_resuming_anywhere_continues_exactly(kind, layout, extra, done, drop_last):
    count = layout.batch_size + extra
    one = one_process(layout.batch_size)
    whole = global_batches(ranks_of(lambda: kind(count), one, drop_last=drop_last), done + 5)
    before = ranks_of(lambda: kind(count), one, drop_last=drop_last)
    global_batches(before, done)

    after = ranks_of(lambda: kind(count), layout, [b.state_dict() for b in before], drop_last=drop_last)

    assert global_batches(after, 5) == whole[done:]


def test_a_stream_with_a_state_does_not_read_again_what_was_used():
    stopped = TrainLoader(Resumable(100), one_process(10))
    global_batches([stopped], 8)
    dataset = Resumable(100)
    resumed = TrainLoader(dataset, one_process(10))
    resumed.load_state_dict([stopped.state_dict()])

    assert global_batches([resumed], 2)
    assert dataset.reads == 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_workers_change_nothing_and_what_they_read_ahead_is_not_counted(kind):
    layout = BatchLayout(6, 2, 3, 1)
    expected = global_batches([TrainLoader(kind(20), layout)], 14)

    stopped = TrainLoader(kind(20), layout, num_workers=2)
    first = global_batches([stopped], 7)
    resumed = TrainLoader(kind(20), layout, num_workers=2)
    resumed.load_state_dict([stopped.state_dict()])

    assert first + global_batches([resumed], 7) == expected


class SplitsItself(Counting, IterableDataset):
    """As torch's documentation has it: each worker yields a part."""

    def __iter__(self):
        info = get_worker_info()
        return iter(range(self.count)) if info is None else iter(range(info.id, self.count, info.num_workers))


@pytest.mark.slow
def test_a_dataset_that_would_split_itself_over_workers_is_read_whole():
    loader = TrainLoader(SplitsItself(12), one_process(4), num_workers=2)

    assert global_batches([loader], 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@settings(max_examples=50)
@given(layouts(), st.integers(1, 9))
def test_shards_together_have_every_sample_and_only_whole_batches(layout, steps):
    count = layout.batch_size * steps

    batches = global_batches(ranks_of(lambda: Sharded(count), layout), steps)

    assert all(len(batch) == layout.batch_size for batch in batches)
    assert sorted(flat(batches)) == list(range(count))


@settings(max_examples=50)
@given(layouts(), extra, st.integers(1, 8))
def test_shards_are_resumed_where_each_of_them_was(layout, extra, done):
    count = layout.batch_size + extra
    whole = global_batches(ranks_of(lambda: Sharded(count), layout), done + 5)
    before = ranks_of(lambda: Sharded(count), layout)
    global_batches(before, done)

    after = ranks_of(lambda: Sharded(count), layout, [b.state_dict() for b in before])

    assert global_batches(after, 5) == whole[done:]


@pytest.mark.slow
def test_a_resume_gives_each_shard_its_turn_whichever_worker_reads_it():
    layout = BatchLayout(6, 2, 3, 1)  # three micro-batches a step, of two workers in turn
    expected = global_batches([TrainLoader(Sharded(20), layout, num_workers=2)], 12)
    stopped = TrainLoader(Sharded(20), layout, num_workers=2)
    first = global_batches([stopped], 5)
    resumed = TrainLoader(Sharded(20), layout, num_workers=2)
    resumed.load_state_dict([stopped.state_dict()])

    assert first + global_batches([resumed], 7) == expected


def test_another_number_of_shards_is_an_error_that_names_both():
    layout = BatchLayout(4, 2, 1, 2)
    states = [TrainLoader(Sharded(20), layout, rank=rank).state_dict() for rank in range(2)]

    with pytest.raises(ConfigError, match="another number of shards") as caught:
        TrainLoader(Sharded(20), one_process(4)).load_state_dict(states)

    assert caught.value.given == "1, where the checkpoint has 2"


@pytest.mark.parametrize(("drop_last", "expected"), [(False, 3), (True, 2)])
def test_a_stream_with_a_length_has_steps_per_epoch(drop_last, expected):
    class Sized(Counting):
        def __len__(self):
            return self.count

    assert TrainLoader(Sized(10), one_process(4), drop_last=drop_last).steps_per_epoch == expected


def test_a_stream_without_a_length_has_no_steps_per_epoch_and_no_first_batch():
    loader = TrainLoader(Counting(10), one_process(4))

    assert loader.steps_per_epoch is None
    assert loader.first_batch() is None


def test_epoch_is_that_of_the_step_last_yielded():
    loader = TrainLoader(Counting(10), one_process(4))

    assert [loader.epoch for _ in islice(loader, 7)] == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 4, 7, 10])
def test_evaluation_reads_a_stream_as_it_reads_a_map_style_dataset(count, world):
    layout = BatchLayout(2 * world, 2, 1, world)

    def sizes(dataset, rank):
        return [(len(m.batch), m.samples) for m in EvalLoader(dataset, layout, rank=rank)]

    for rank in range(world):
        assert sizes(Counting(count), rank) == sizes(range(count), rank)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_every_evaluation_reads_one_whole_pass(num_workers):
    loader = EvalLoader(Shuffled(7), one_process(2), num_workers=num_workers)

    first, second = ([m.batch.tolist() for m in loader] for _ in range(2))

    assert first == second
    assert sorted(flat(first)) == list(range(7))


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [(Counting(3), True), (SplitsItself(3), True), (range(3), False), ([1, 2], False)],
)
def test_what_is_iterated_rather_than_indexed_is_a_stream(dataset, expected):
    assert is_stream(dataset) is expected
