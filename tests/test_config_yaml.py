"""YAML text is read as plain data by the rules of YAML 1.2, and written such that it is read back."""

import pytest
from hypothesis import given

from distopt.config.document import dump, parse, read
from tests.configs import plain_data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3E4", 3e4),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("-7", -7),
        ("~", None),
        ("", None),
        ("True", True),
        ("on", "on"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("!!float 12", 12.0),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    data, _ = parse(f"key: {text}", "cfg.yaml")
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


def test_keys_that_yaml_1_1_takes_for_booleans_stay_text():
    assert parse("on: {off: 1, y: 2}", "cfg.yaml")[0] == {"on": {"off": 1, "y": 2}}


def test_own_keys_win_over_merged_ones_and_earlier_merges_over_later():
    text = """
    a: &a {x: 1, y: 1}
    b: &b {y: 2, z: 2, w: 2}
    c: {w: 3, <<: [*a, *b]}
    """
    assert parse(text, "cfg.yaml")[0]["c"] == {"x": 1, "y": 1, "z": 2, "w": 3}


def test_aliases_share_no_data():
    data, _ = parse("a: &a [1]\nb: *a\n", "cfg.yaml")
    data["a"].append(2)
    assert data["b"] == [1]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "cfg.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read(tmp_path / "cfg.yaml").data == {"a": 1}


@given(plain_data)
def test_dumped_data_is_read_back(data):
    assert parse(dump(data), "cfg.yaml")[0] == data


@pytest.mark.parametrize(
    "text", ["1e-3", "0o17", "on", "1:30", "2026-01-01", "~", "", "08", "<<", "1_000", "\x85", "a\nb"]
)
def test_dumped_text_is_quoted_where_it_would_be_read_as_something_else(text):
    assert parse(dump({text: text}), "cfg.yaml")[0] == {text: text}
