"""The standard library's text, and the loaders."""

import sysconfig
from collections import Counter, namedtuple
from itertools import islice, pairwise
from math import log

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from distopt.config import BatchLayout
from distopt.data import EvalLoader, StdlibText, TrainLoader, text
from distopt.data.loader import to_device
from distopt.errors import ConfigError

Pair = namedtuple("Pair", "first second")


class Numbers(Dataset):
    """Item i is i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor(index)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """An empty folder in place of the interpreter's own library."""
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    text._text.cache_clear()
    yield tmp_path
    text._text.cache_clear()


@pytest.fixture
def small_library(library):
    for number in range(40):
        (library / f"module{number:02}.py").write_bytes(f"<{number:02}>".encode() * 5)
    return library


def write_train_file(library, content):
    (library / "this.py").write_bytes(content)


def as_bytes(dataset):
    """The text that a dataset's windows cover."""
    return bytes(dataset[0][:1].tolist()) + b"".join(bytes(window[1:].tolist()) for window in dataset)


def test_items_are_windows_of_bytes():
    window = StdlibText("val", context=32)[0]

    assert window.shape == (33,)
    assert window.dtype == torch.uint8


def test_neighbouring_windows_share_one_byte():
    dataset = StdlibText("val", context=32)

    assert all(dataset[i][-1] == dataset[i + 1][0] for i in range(100))


def test_windows_cover_the_text_once(library):
    write_train_file(library, b"abcdefghij")

    assert as_bytes(StdlibText(context=3)) == b"abcdefghij"


def test_an_incomplete_last_window_is_left_out(library):
    write_train_file(library, b"abcdefghi")

    assert as_bytes(StdlibText(context=3)) == b"abcdefg"


def test_the_splits_share_no_file_and_leave_none_out(small_library):
    train, val = (as_bytes(StdlibText(split, context=1)) for split in ("train", "val"))

    files = [f"<{number:02}>".encode() for number in range(40)]
    assert val
    assert [file in train for file in files] == [file not in val for file in files]


def test_val_is_a_small_part_of_the_real_library():
    train, val = len(StdlibText("train")), len(StdlibText("val"))

    assert 0.03 < val / (train + val) < 0.15


def test_packages_of_the_library_are_part_of_it(small_library):
    (small_library / "json").mkdir()
    (small_library / "json" / "this.py").write_bytes(b"nested")

    assert any(b"nested" in as_bytes(StdlibText(split, context=1)) for split in ("train", "val"))


@pytest.mark.parametrize("name", ["site-packages/a.py", "dist-packages/a.py", "__pycache__/a.py", "a.txt"])
def test_installed_packages_and_other_files_are_no_part_of_it(small_library, name):
    path = small_library / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"foreign")

    assert not any(b"foreign" in as_bytes(StdlibText(split, context=1)) for split in ("train", "val"))


def test_files_that_cannot_be_read_are_skipped(small_library):
    whole = len(as_bytes(StdlibText(context=1)))
    text._text.cache_clear()
    unreadable = small_library / "module00.py"
    unreadable.unlink()
    unreadable.symlink_to(small_library / "missing")

    assert len(as_bytes(StdlibText(context=1))) == whole - 20


def test_limit_takes_windows_from_all_over_the_text():
    whole, some = StdlibText("val"), StdlibText("val", limit=10)

    assert len(some) == 10
    assert all(torch.equal(some[i], whole[i * len(whole) // 10]) for i in range(10))


def test_a_limit_beyond_the_text_takes_all_of_it(small_library):
    assert len(StdlibText(context=4, limit=10**9)) == len(StdlibText(context=4))


def test_tokens_per_sample_is_the_context():
    assert StdlibText("val", context=48).tokens_per_sample == 48


def test_an_unknown_split_is_an_error_that_names_the_right_one():
    with pytest.raises(ConfigError, match="train, val") as caught:
        StdlibText("vall")

    assert caught.value.suggestion == "val"


def test_an_interpreter_without_library_source_is_an_error(library):
    with pytest.raises(ConfigError, match="source of its standard library") as caught:
        StdlibText()

    assert caught.value.given == str(library)


def test_the_bigram_baseline_is_that_of_a_plain_count(small_library):
    train, val = (as_bytes(StdlibText(split, context=1)) for split in ("train", "val"))
    pairs, firsts = Counter(pairwise(train)), Counter(train[:-1])
    losses = [-log((pairs[a, b] + 1) / (firsts[a] + 256)) for a, b in pairwise(val)]

    baseline = StdlibText("val", context=1).baselines()["bigram"]

    assert baseline == pytest.approx(sum(losses) / len(losses), rel=1e-9)


@pytest.mark.slow
def test_the_bigram_baseline_of_the_real_library_is_what_is_known():
    assert 2.2 < StdlibText("val", limit=4096).baselines()["bigram"] < 2.7


def layout(batch_size, *, micro_batch_size=None, world=1):
    micro_batch_size = micro_batch_size or batch_size // world
    return BatchLayout(batch_size, micro_batch_size, batch_size // (world * micro_batch_size), world)


def steps(loader, count):
    """The first steps as nested lists of numbers: step, micro-batch, sample."""
    return [[batch.tolist() for batch in step] for step in islice(loader, count)]


def test_a_step_is_a_list_of_micro_batches():
    loader = TrainLoader(Numbers(50), layout(12, micro_batch_size=2, world=2), rank=1)

    (step,) = islice(loader, 1)

    assert len(step) == 3
    assert all(batch.shape == (2,) for batch in step)


def test_steps_per_epoch_leaves_out_an_incomplete_batch():
    assert TrainLoader(Numbers(50), layout(12)).steps_per_epoch == 4


def test_epoch_is_that_of_the_step_last_yielded():
    loader = TrainLoader(Numbers(10), layout(4, micro_batch_size=4))

    assert [loader.epoch for _ in islice(loader, 5)] == [0, 0, 1, 1, 2]


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
    resumed.load_state_dict(stopped.state_dict())

    assert first + steps(resumed, 6) == uninterrupted


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
    weighted = [(weight * batch.double().mean(), weight) for part in parts for batch, weight in part]

    assert sum(weight for _, weight in weighted) == count
    assert sum(value for value, _ in weighted) / count == pytest.approx((count - 1) / 2)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_every_rank_runs_equally_many_forwards_none_of_them_empty(world):
    parts = [list(EvalLoader(Numbers(7), layout(2 * world, world=world), rank=rank)) for rank in range(world)]

    assert len({len(part) for part in parts}) == 1
    assert all(len(batch) > 0 for part in parts for batch, _ in part)


def test_chunks_are_the_same_for_every_world_size():
    def chunks(world):
        parts = [EvalLoader(Numbers(7), layout(2 * world, world=world), rank=rank) for rank in range(world)]
        return {tuple(batch.tolist()) for part in parts for batch, weight in part if weight}

    assert chunks(1) == chunks(2) == chunks(3) == {(0, 1), (2, 3), (4, 5), (6,)}


@pytest.mark.slow
def test_evaluating_again_with_workers_gives_the_same_batches():
    loader = EvalLoader(Numbers(7), layout(2), num_workers=2)

    first, second = ([(batch.tolist(), weight) for batch, weight in loader] for _ in range(2))

    assert first == second == [([0, 1], 2), ([2, 3], 2), ([4, 5], 2), ([6], 1)]


def test_batches_of_tuples_come_as_the_dataset_gives_them():
    dataset = TensorDataset(torch.arange(6), torch.arange(6) * 2)
    (((inputs, targets),),) = islice(TrainLoader(dataset, layout(6, micro_batch_size=6)), 1)

    assert torch.equal(targets, inputs * 2)


def test_every_tensor_of_a_nested_batch_is_moved():
    batch = {"pair": Pair(torch.ones(2), [torch.ones(1)]), "both": (torch.ones(1), "text")}

    moved = to_device(batch, torch.device("meta"))

    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].first.is_meta
    assert moved["pair"].second[0].is_meta
    assert moved["both"][0].is_meta
    assert moved["both"][1] == "text"


@pytest.mark.gpu
def test_batches_arrive_on_the_gpu():
    loader = TrainLoader(Numbers(50), layout(8, micro_batch_size=4), device="cuda")

    assert all(batch.is_cuda for step in islice(loader, 3) for batch in step)
