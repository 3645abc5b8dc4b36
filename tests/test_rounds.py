"""Ranks that a launcher restarts meet those that were restarted with them, and none that have died."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore, Store

from distopt.rounds import new_round


def _meet(store: Store, size: int) -> list[Store]:
    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(lambda rank: new_round(store, rank, size), range(size)))


def test_ranks_of_one_round_share_what_they_store():
    first, *others = _meet(HashStore(), 3)
    first.set("address", "here")
    assert [other.get("address") for other in others] == [b"here", b"here"]


def test_a_round_knows_nothing_of_the_one_before():
    store = HashStore()
    before, after = _meet(store, 3), _meet(store, 2)
    before[0].set("address", "of one that has died")
    assert not any(rank.check(["address"]) for rank in after)
    after[0].set("address", "here")
    assert after[1].get("address") == b"here"


def test_a_rank_that_died_on_its_way_is_waited_for_no_more_when_it_comes_again():
    store = HashStore()
    store.set("rank 1", "one that died before it was told")
    first, second = _meet(store, 2)
    first.set("address", "here")
    assert second.get("address") == b"here"


def test_ranks_that_do_not_come_are_named():
    store = HashStore()
    store.set_timeout(timedelta(milliseconds=50))
    with pytest.raises(RuntimeError, match=r"have not come: \[1, 2\]"):
        new_round(store, 0, 3)
