"""Resuming under a changed model: renamed, new and removed parameters and buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distopt import ConfigError
from distopt.checkpoint.rename import outstanding, renamed, suggest
from tests.kit import run_distributed
from tests.resumes import Starts, adamw, continued, start, twice

ALL = {f"{module}.{name}" for module in ("first", "norm", "last") for name in ("weight", "bias")}
NEW = {"extra.weight", "extra.bias"}


def same_weights(starts: Starts, names: dict[str, str]) -> bool:
    """Whether the second start found all parameters and buffers of the first, under the new names."""
    left, found = starts.first.left_weights, starts.second.found_weights
    return all(torch.equal(found[renamed(name, names)], left[name]) for name in left)


def error_of(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        start(folder, max_steps=4, **changes)
    return str(caught.value)


def test_renamed_modules_keep_weights_buffers_and_optimizer_state(tmp_path):
    names = {"first": "stem", "norm": "stem_norm"}
    second = {"net": {"first": "stem", "norm": "stem_norm"}, "resume_rename": names}
    starts = twice(tmp_path, {}, second)
    assert same_weights(starts, names)
    assert "stem_norm.running_mean" in starts.second.found_weights
    assert continued(starts, {name: renamed(name, names) for name in ALL}) == starts.second.found.keys()
    assert starts.told == []


def test_values_of_renamed_parameters_are_compared(tmp_path):
    second = {"net": {"last": "head"}, "resume_rename": {"last": "head"}, **adamw({"head": {"lr_mult": 2}})}
    assert twice(tmp_path, {}, second).told == ["2 parameters: lr 0.01 → 0.02 (rule head)"]


def test_a_renamed_tie_stays_one_parameter_with_its_state(tmp_path):
    names = {"first": "stem"}
    tied = {"tied": True}
    starts = twice(
        tmp_path,
        {"net": tied, **adamw()},
        {"net": {**tied, "first": "stem"}, "resume_rename": names, **adamw()},
    )
    assert same_weights(starts, names)
    assert torch.equal(*(starts.second.left_weights[f"{name}.weight"] for name in ("stem", "twin")))
    assert "stem.weight" in continued(starts, {name: renamed(name, names) for name in starts.first.left})


def test_the_state_of_a_tie_goes_on_under_whichever_of_its_names_is_the_first_now(tmp_path):
    starts = twice(tmp_path, {"net": {"tied": True}, **adamw()}, {"net": {"tied": "first"}, **adamw()})
    names = {"first.weight": "twin.weight"}
    assert continued(starts, names) == starts.second.found.keys() > {"twin.weight", "first.bias"}
    assert starts.told == []


def test_what_was_tied_and_is_single_now_keeps_its_value_and_starts_its_state_afresh(tmp_path):
    starts = twice(
        tmp_path, {"net": {"tied": True}, **adamw()}, {"net": {"tied": True, "untied": True}, **adamw()}
    )
    assert torch.equal(*(starts.second.found_weights[f"{name}.weight"] for name in ("first", "twin")))
    assert continued(starts) == starts.first.left.keys() == starts.second.found.keys()
    assert starts.told == ["1 parameter tied before, single now: the optimizer's state starts afresh"]


def test_a_renamed_run_that_is_submitted_again_goes_on(tmp_path):
    second = {"net": {"first": "stem"}, "resume_rename": {"first": "stem"}}
    starts = twice(tmp_path, {}, second)
    again, _ = start(tmp_path, max_steps=5, **second)
    assert all(torch.equal(again.found_weights[n], w) for n, w in starts.second.left_weights.items())


def test_names_that_were_swapped_are_not_swapped_back_when_it_is_submitted_again(tmp_path):
    """In both checkpoints there are both names: what decides is which renaming wrote them."""
    square = {"width": 9}
    second = {
        "net": {**square, "first": "last", "last": "first"},
        "resume_rename": {"first": "last", "last": "first"},
    }
    starts = twice(tmp_path, {"net": square}, second)
    assert same_weights(starts, second["resume_rename"])
    again, _ = start(tmp_path, max_steps=5, **second)
    assert all(torch.equal(again.found_weights[n], w) for n, w in starts.second.left_weights.items())


def test_what_is_new_and_gone_is_refused_with_the_key_that_would_take_the_rest(tmp_path):
    start(tmp_path)
    message = error_of(tmp_path, net={"extra": True})
    assert "extra.weight is new" in message
    assert "resume_strict: false takes what both have" in message
    assert "did you mean" not in message


def test_a_renaming_that_fits_is_suggested(tmp_path):
    start(tmp_path)
    message = error_of(tmp_path, net={"first": "stem", "last": "head"})
    assert "did you mean: resume_rename: {first: stem, last: head}?" in message


def test_what_only_the_model_has_keeps_its_initial_values_where_not_strict(tmp_path):
    starts = twice(tmp_path, {}, {"net": {"extra": True}, "resume_strict": False})
    assert continued(starts) == starts.second.found.keys() == ALL
    assert torch.equal(starts.second.found_weights["extra.weight"], torch.ones(9))
    assert {name: starts.second.left[name]["step"] for name in NEW} == dict.fromkeys(NEW, 1)
    assert starts.told == [
        "5 tensors not in the checkpoint, and kept at initial values: extra.weight, extra.bias,"
        " extra.running_mean, extra.running_var, extra.num_batches_tracked"
    ]


def test_what_only_the_checkpoint_has_is_dropped_where_not_strict(tmp_path):
    starts = twice(tmp_path, {"net": {"extra": True}}, {"resume_strict": False})
    assert continued(starts) == starts.second.found.keys() == ALL
    [told] = starts.told
    assert told.startswith("5 tensors only in the checkpoint, and dropped: extra.weight, extra.bias,")


def test_a_parameter_that_is_tied_to_one_in_the_checkpoint_is_not_new(tmp_path):
    starts = twice(tmp_path, {}, {"net": {"tied": True}, "resume_strict": False, **adamw()})
    assert torch.equal(starts.second.found_weights["twin.weight"], starts.first.left_weights["first.weight"])
    assert starts.told == ["1 tensor not in the checkpoint, and kept at initial values: twin.bias"]


def test_two_parameters_that_are_one_now_are_refused(tmp_path):
    """Which of both values it should have, nothing says."""
    start(tmp_path, net={"tied": True, "untied": True}, **adamw())
    message = error_of(tmp_path, net={"tied": True}, **adamw())
    assert "first.weight and twin.weight are one parameter now, and were several" in message


@pytest.mark.parametrize("strict", [True, False])
def test_another_shape_is_refused(tmp_path, strict):
    start(tmp_path)
    message = error_of(tmp_path, net={"width": 5}, resume_strict=strict)
    assert "first.weight was (4, 9), is (5, 9)" in message
    assert "resume_strict" not in message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"frist": "stem"}, "resume_rename.frist: nothing in the checkpoint has this name"),
        ({"first": "stm"}, "resume_rename.first: no parameter, buffer or module of the model has this name"),
    ],
)
def test_a_name_that_there_is_not_is_refused_with_the_nearest(tmp_path, names, message):
    start(tmp_path)
    found = error_of(tmp_path, net={"first": "stem"}, resume_rename=names)
    assert message in found
    assert f"did you mean: {'first' if 'frist' in names else 'stem'}?" in found


def test_two_parameters_do_not_get_one_name():
    with pytest.raises(ConfigError, match=r"a\.w and b\.w of the checkpoint would both be b\.w"):
        outstanding({"a": "b"}, ["a.w", "b.w"], ["b.w", "c.w"], done={})


def test_the_longest_entry_renames():
    names = {"blocks": "layers", "blocks.0.norm": "first_norm", "blocks.1.weight": "w"}
    assert [
        renamed(name, names) for name in ("blocks.0.norm.bias", "blocks.1.weight", "blocks.1.weights")
    ] == [
        "first_norm.bias",
        "w",
        "layers.1.weights",
    ]


def test_what_could_have_several_names_is_not_suggested():
    shape = (4, 4)
    assert suggest({"a.weight": shape}, {"b.weight": shape, "c.weight": shape}) == {}
    assert suggest({"a.weight": shape}, {"b.weight": (4, 5)}) == {}
    assert suggest({"a.weight": shape}, {"net.a.weight": shape}) == {"a": "net.a"}


def test_a_suggestion_is_made_of_modules_where_layers_are_alike():
    shapes = {f"blocks.{i}.{name}": (4,) for i in range(3) for name in ("up.weight", "down.weight")}
    now = {name.replace("blocks", "model.layers"): shape for name, shape in shapes.items()}
    assert suggest(shapes, now) == {"blocks": "model.layers"}


def test_a_module_is_suggested_only_where_all_of_it_was_renamed():
    """`enc` has two homes now, and `dec.kept` has stayed."""
    shape = (4,)
    saved = dict.fromkeys(("enc.a.weight", "enc.b.weight", "dec.c.weight", "dec.kept.weight"), shape)
    here = dict.fromkeys(("x.a.weight", "y.b.weight", "z.c.weight", "dec.kept.weight"), shape)
    assert suggest(saved, here) == {"enc.a": "x.a", "enc.b": "y.b", "dec.c": "z.c"}


def _under_fsdp(folder: Path) -> tuple[set[str], bool, torch.Tensor, list[str]]:
    """Two modules renamed, one tied; another added, whose initial values are set on the meta device."""
    names = {"first": "stem", "norm": "stem_norm"}
    fsdp: dict[str, Any] = {"strategy": {"type": "fsdp", "meta_init": True}, **adamw()}
    net = {"first": "stem", "norm": "stem_norm", "tied": True, "extra": True}
    second = {"net": net, "resume_rename": names, "resume_strict": False, **fsdp}
    starts = twice(folder, {"net": {"tied": True}, **fsdp}, second)
    same = continued(starts, {name: renamed(name, names) for name in starts.first.left})
    return same, same_weights(starts, names), starts.second.found_weights["extra.weight"], starts.told


def test_a_changed_model_goes_on_under_fsdp(tmp_path):
    for same, weights, extra, told in run_distributed(_under_fsdp, tmp_path):
        assert same == {renamed(name, {"first": "stem", "norm": "stem_norm"}) for name in ALL} | {"twin.bias"}
        assert weights
        assert torch.equal(extra, torch.ones(9))
        assert [sentence.partition(",")[0] for sentence in told] == ["5 tensors not in the checkpoint"]
