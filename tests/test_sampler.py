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


def steps_of_ranks(count, length, layout, *, seed=0, epoch=0, offset=0, drop_last=False):
    """The next steps from a place on: for each step and rank its draws."""
    ranks = [
        GlobalBatchSampler(length, layout, rank=rank, seed=seed, drop_last=drop_last).draws(epoch, offset)
        for rank in range(layout.world)
    ]
    return [[list(islice(rank, layout.accumulation)) for rank in ranks] for _ in range(count)]


def global_batches(count, length, layout, **place):
    """The same as plain numbers: what the ranks have of each global batch, one behind the other."""
    return [
        [i for draws in ranks for draw in draws if draw and draw.samples for i in draw.ids]
        for ranks in steps_of_ranks(count, length, layout, **place)
    ]


extra = st.integers(0, 60)
seeds = st.integers(0, 2**40)
drop_lasts = st.booleans()


@given(layouts(), extra, seeds, drop_lasts)
def test_every_world_and_micro_batch_size_sees_the_same_global_batches_in_the_same_order(
    layout, extra, seed, drop_last
):
    length = layout.batch_size + extra
    steps = 2 * (length // layout.batch_size) + 1

    cut_up = global_batches(steps, length, layout, seed=seed, drop_last=drop_last)

    one = one_process(layout.batch_size)
    assert cut_up == global_batches(steps, length, one, seed=seed, drop_last=drop_last)


@given(layouts(), extra, seeds)
def test_an_epoch_has_every_sample_once(layout, extra, seed):
    length = layout.batch_size + extra
    steps = -(-length // layout.batch_size)

    seen = chain.from_iterable(global_batches(steps, length, layout, seed=seed))

    assert sorted(seen) == list(range(length))


@given(layouts(), extra, seeds)
def test_drop_last_leaves_out_an_incomplete_batch_alone(layout, extra, seed):
    length = layout.batch_size + extra
    steps = length // layout.batch_size

    batches = global_batches(steps + 1, length, layout, seed=seed, drop_last=True)

    assert batches[:steps] == global_batches(steps, length, layout, seed=seed)
    assert batches[steps:] == global_batches(1, length, layout, seed=seed, epoch=1)


@given(layouts(), extra)
def test_all_ranks_run_the_same_micro_steps_and_in_each_somebody_has_a_sample(layout, extra):
    length = layout.batch_size + extra
    steps = -(-length // layout.batch_size)

    for ranks in steps_of_ranks(steps, length, layout):
        for draws in zip(*ranks, strict=True):
            left_out = [draw is None for draw in draws]
            assert all(left_out) or not any(left_out)
            assert all(left_out) or sum(draw.samples for draw in draws) > 0


@given(layouts(), extra)
def test_a_last_batch_is_spread_evenly_over_ranks_and_micro_steps(layout, extra):
    length = layout.batch_size + extra
    steps = -(-length // layout.batch_size)

    for ranks in steps_of_ranks(steps, length, layout):
        sizes = [[draw.samples for draw in draws if draw] for draws in ranks]
        largest, smallest = max(map(sum, sizes)), min(map(sum, sizes))
        assert largest - smallest <= 1
        assert {len(rank) for rank in sizes} == {-(-largest // layout.micro_batch_size)}
        assert all(max(rank) - min(rank) <= 1 for rank in sizes)
        assert all(rank == sorted(rank, reverse=True) for rank in sizes)  # dummies come last


def test_29_samples_over_2_ranks_are_15_and_14():
    (ranks,) = steps_of_ranks(1, 61, BatchLayout(32, 8, 2, 2), offset=32)

    assert [[draw.samples for draw in draws] for draws in ranks] == [[8, 7], [7, 7]]


@given(layouts(), extra)
def test_a_rank_that_runs_out_draws_one_sample_of_the_same_batch(layout, extra):
    length = layout.batch_size + extra
    steps = -(-length // layout.batch_size)
    batches = global_batches(steps, length, layout)

    for batch, ranks in zip(batches, steps_of_ranks(steps, length, layout), strict=True):
        dummies = [draw for draws in ranks for draw in draws if draw and not draw.samples]
        assert all(len(draw.ids) == 1 and draw.ids[0] in batch for draw in dummies)


@given(layouts(), extra)
def test_every_draw_knows_the_size_of_the_global_batch(layout, extra):
    length = layout.batch_size + extra

    for ranks in steps_of_ranks(2, length, layout):
        draws = [draw for draws in ranks for draw in draws if draw]
        assert {draw.total for draw in draws} == {sum(draw.samples for draw in draws)}


@given(layouts(), extra, seeds, st.integers(0, 40), drop_lasts)
def test_resuming_anywhere_continues_exactly(layout, extra, seed, done, drop_last):
    length = layout.batch_size + extra
    one = one_process(layout.batch_size)
    kind = {"seed": seed, "drop_last": drop_last}
    uninterrupted = global_batches(done + 6, length, one, **kind)

    place = steps_of_ranks(done + 1, length, one, **kind)[-1][0][0].place

    assert global_batches(5, length, layout, **kind, **place) == uninterrupted[done + 1 :]


@given(layouts(), extra, st.data())
def test_a_changed_batch_size_goes_on_with_the_samples_not_yet_seen(layout, extra, data):
    length = layout.batch_size + extra
    new_batch_size = data.draw(st.integers(1, length))
    done = data.draw(st.integers(0, length // layout.batch_size))
    offset = done * layout.batch_size
    left = -(-(length - offset) // new_batch_size)

    first = global_batches(done, length, layout)
    rest = global_batches(left, length, one_process(new_batch_size), offset=offset)

    assert sorted(chain.from_iterable(first + rest)) == list(range(length))


def test_the_place_is_the_epoch_and_the_samples_used_up_in_it():
    draws = islice(GlobalBatchSampler(10, one_process(4)).draws(), 5)

    places = [(draw.place["epoch"], draw.place["offset"]) for draw in draws]

    assert places == [(0, 4), (0, 8), (0, 10), (1, 4), (1, 8)]


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
