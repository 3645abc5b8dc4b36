"""How groups and numbers are put for people to read."""

from __future__ import annotations

from typing import Any

import pytest

from distopt.monitor.groups import collapse, group_rows, largest_group
from distopt.monitor.units import compact, count, duration, metric, percent, step_time


def test_names_that_differ_in_one_number_become_a_range() -> None:
    assert collapse(f"blocks.{i}.norm1.weight" for i in range(3)) == ["blocks.{0-2}.norm1.weight"]


def test_numbers_at_several_places_become_several_ranges() -> None:
    names = [f"blocks.{i}.norm{k}.{what}" for i in range(12) for k in (1, 2) for what in ("weight", "bias")]
    assert collapse(names) == ["blocks.{0-11}.norm{1-2}.weight", "blocks.{0-11}.norm{1-2}.bias"]


def test_stages_of_unequal_depth_are_not_blurred() -> None:
    names = [
        f"stages.{stage}.{i}.norm.weight" for stage, depth in enumerate((3, 3, 9, 3)) for i in range(depth)
    ]
    assert collapse(names) == ["stages.{0-1,3}.{0-2}.norm.weight", "stages.2.{0-8}.norm.weight"]


def test_a_name_without_a_counterpart_stays_itself() -> None:
    assert collapse(["layer4.1.bn2.bias", "norm.weight"]) == ["layer4.1.bn2.bias", "norm.weight"]


def test_collapsing_keeps_leading_zeros() -> None:
    assert collapse(["h_08.w", "h_09.w", "h_10.w"]) == ["h_{08-10}.w"]


def test_no_names_collapse_to_no_names() -> None:
    assert collapse([]) == []


def test_shared_parameters_stand_first_with_their_aliases() -> None:
    (row,) = group_rows([group("default", ("norm.weight",), ("embedding.weight", "head.weight"))])
    assert row.names == ("embedding.weight = head.weight", "norm.weight")


def test_shares_are_of_all_trainable_parameters() -> None:
    rows = group_rows([group("default", ("a",), ("b",), ("c",)), group("norm", ("d",))])
    assert [row.share for row in rows] == [0.75, 0.25]


def test_a_group_that_no_rule_decided_has_the_base_values() -> None:
    (row,) = group_rows([group("default", ("a",))])
    assert (row.lr, row.weight_decay, row.rule) == ("0.001", "0.1", "base values")


def test_all_deciding_rules_and_further_options_are_named() -> None:
    (row,) = group_rows([{**group("x", ("a",)), "rules": ["head", "norm"], "options": {"momentum": 0.5}}])
    assert (row.lr, row.weight_decay, row.rule) == ("-", "-", "head + norm, momentum=0.5")


def test_the_largest_group_has_the_most_parameters() -> None:
    assert largest_group([group("few", ("a",)), group("many", ("b",), ("c",))]) == "many"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count(644_480), "644,480"),
        (count(8_030_261_248), "8.03B"),
        (compact(87.25), "87.2"),
        (compact(12_345), "12.3k"),
        (compact(192_000), "192k"),
        (percent(0.9886), "98.9%"),
        (percent(0.0001), "<0.1%"),
        (percent(0), "0.0%"),
        (metric(2.38123), "2.3812"),
        (metric(0.00001234), "1.234e-05"),
        (metric(float("nan")), "nan"),
        (step_time(0.0213), "21.3 ms"),
        (step_time(1.519), "1.52 s"),
        (duration(92.4), "1:32"),
        (duration(7510), "2:05:10"),
        (duration(3 * 86400 + 61), "3d 00:01:01"),
    ],
)
def test_numbers_are_put_briefly(text: str, expected: str) -> None:
    assert text == expected


def group(name: str, *params: tuple[str, ...]) -> dict[str, Any]:
    """A plan's group; each parameter, of 10 elements, is given by its names."""
    return {
        "name": name,
        "rules": [],
        "options": {"lr": 1e-3, "weight_decay": 0.1},
        "why": {},
        "params": [{"fqn": fqn, "aliases": aliases, "shape": [10], "numel": 10} for fqn, *aliases in params],
    }
