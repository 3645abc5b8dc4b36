"""The standard library's text."""

import sysconfig
from collections import Counter
from itertools import pairwise
from math import log

import pytest
import torch

from distopt.data import StdlibText, text
from distopt.errors import ConfigError


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
