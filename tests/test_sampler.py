"""The order of training samples: independent of the world, resumable anywhere, nothing twice."""

from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distopt.config import BatchLayout
from distopt.data import GlobalBatchSampler
from distopt.errors import ConfigError


@st.composite
def layouts(draw):
    world, micro_batch_size, accumulation = (draw(st.integers(1, top)) for top in (4, 3, 3))
    return BatchLayout(world * micro_batch_size * accumulation, micro_batch_size, accumulation, world)


def one_process(batch_size):
    return BatchLayout(batch_size, micro_batch_size=batch_size, accumulation=1, world=1)


def global_batches(count, length, layout, *, seed=0, epoch=0, offset=0):
    """The next global batches from a place on: in each, the ranks' parts one behind the other."""
    ranks = []
    for rank in range(layout.world):
        sampler = GlobalBatchSampler(length, layout, rank=rank, seed=seed)
        sampler.load_state_dict({"epoch": epoch, "offset": offset})
        ranks.append(iter(sampler))
    return [
        list(chain.from_iterable(next(rank) for rank in ranks for _ in range(layout.accumulation)))
        for _ in range(count)
    ]


extra = st.integers(0, 60)
seeds = st.integers(0, 2**40)


@given(layouts(), extra, seeds)
def test_every_world_and_micro_batch_size_sees_the_same_global_batches_in_the_same_order(layout, extra, seed):
    length = layout.batch_size + extra
    steps = 2 * (length // layout.batch_size) + 1

    cut_up = global_batches(steps, length, layout, seed=seed)

    assert cut_up == global_batches(steps, length, one_process(layout.batch_size), seed=seed)


@given(layouts(), extra)
def test_every_micro_batch_is_full(layout, extra):
    sampler = GlobalBatchSampler(layout.batch_size + extra, layout)

    assert all(len(micro_batch) == layout.micro_batch_size for micro_batch in islice(sampler, 50))


@given(layouts(), extra, seeds)
def test_within_an_epoch_nothing_comes_twice_and_only_an_incomplete_batch_is_left_out(layout, extra, seed):
    length = layout.batch_size + extra
    steps = length // layout.batch_size

    seen = list(chain.from_iterable(global_batches(steps, length, layout, seed=seed)))

    assert len(set(seen)) == len(seen) == steps * layout.batch_size
    assert set(seen) <= set(range(length))


@given(layouts(), extra, seeds, st.integers(0, 40))
def test_resuming_anywhere_continues_exactly(layout, extra, seed, done):
    length = layout.batch_size + extra
    uninterrupted = global_batches(done + 5, length, one_process(layout.batch_size), seed=seed)

    before = GlobalBatchSampler(length, one_process(layout.batch_size), seed=seed)
    for _ in range(done):
        before.advance()

    assert global_batches(5, length, layout, seed=seed, **before.state_dict()) == uninterrupted[done:]


@given(layouts(), extra, st.integers(1, 12), st.data())
def test_a_changed_batch_size_goes_on_with_the_samples_not_yet_seen(layout, extra, new_batch_size, data):
    length = layout.batch_size + extra
    done = data.draw(st.integers(0, length // layout.batch_size))
    offset = done * layout.batch_size
    left = (length - offset) // new_batch_size

    first = global_batches(done, length, layout)
    rest = global_batches(left, length, one_process(new_batch_size), offset=offset) if left else []

    seen = list(chain.from_iterable(first + rest))
    assert len(set(seen)) == len(seen)


def test_the_place_is_the_epoch_and_the_samples_used_up_in_it():
    places = []
    sampler = GlobalBatchSampler(10, one_process(4))
    for _ in range(5):
        sampler.advance()
        places.append((sampler.epoch, sampler.offset))

    assert places == [(0, 4), (0, 8), (1, 4), (1, 8), (2, 4)]


def test_iterating_does_not_move_the_place():
    sampler = GlobalBatchSampler(10, one_process(4))
    list(islice(sampler, 7))

    assert sampler.state_dict() == {"epoch": 0, "offset": 0}


def test_every_epoch_of_every_seed_has_its_own_order():
    """Nor is the next epoch of one seed the first of the next seed."""
    orders = {
        tuple(global_batches(1, 100, one_process(100), seed=seed, epoch=epoch)[0])
        for seed in range(3)
        for epoch in range(3)
    }

    assert len(orders) == 9


def test_a_batch_larger_than_the_data_is_an_error():
    with pytest.raises(ConfigError, match="at most 10") as caught:
        GlobalBatchSampler(10, one_process(11))

    assert caught.value.key == "data.batch_size"
