"""Arguments are held against the signature of what they are for, before anything is built."""

from functools import wraps

import pytest

from distopt.errors import ConfigError
from distopt.registry import check_arguments


def error_of(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        check_arguments(*args, **kwargs)
    return caught.value


def factory(width, depth=2, *, bias=True):
    return width, depth, bias


def test_arguments_that_fit_pass():
    check_arguments(factory, {"width": 3, "bias": False}, "model")


def test_unknown_and_missing_arguments_are_all_named():
    error = error_of(factory, {"widht": 3, "heads": 2}, "model")
    unknown, other, missing = (error, *error.others)
    assert (unknown.key, unknown.suggestion) == ("model.widht", "width")
    assert unknown.problem == "unknown argument of factory"
    assert (other.key, other.allowed) == ("model.heads", "width, depth, bias")
    assert (missing.key, missing.problem) == ("model.width", "missing argument of factory")
    assert missing.allowed == "width, depth, bias"


def annotated(
    width: "int" = 1,
    rate: float = 0.1,
    tie: bool = True,
    name: str | None = "net",
    limit: "int" = None,  # noqa: RUF013
    shape: tuple[int, ...] = (1,),
):
    return width


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("width", "wide", "a whole number"),
        ("width", 1.5, "a whole number"),
        ("width", True, "a whole number"),
        ("width", None, "a whole number"),
        ("rate", "1e-3", "a number"),
        ("rate", False, "a number"),
        ("tie", 1, "true or false"),
        ("name", 3, "text or null"),
        ("limit", [1], "a whole number"),
    ],
)
def test_a_value_is_held_against_a_plain_annotation(argument, value, allowed):
    error = error_of(annotated, {argument: value}, "model")
    assert (error.key, error.problem) == (f"model.{argument}", "wrong type")
    assert (error.given, error.allowed) == (value, allowed)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("width", 2), ("rate", 1), ("rate", 0.5), ("name", None), ("limit", None), ("shape", "any")],
)
def test_a_value_that_fits_or_whose_annotation_is_not_plain_passes(argument, value):
    check_arguments(annotated, {argument: value}, "model")


def test_annotations_that_mean_nothing_at_run_time_are_passed_over():
    def factory(tokens: "Tensor", width: "int"):  # noqa: F821
        pass

    check_arguments(factory, {"tokens": 1, "width": "wide"}, "model")


def test_provided_arguments_are_neither_missing_nor_the_users_to_give():
    check_arguments(factory, {}, "model", provided=("width",))
    error = error_of(factory, {"width": 1}, "model", provided=("width",))
    assert (error.key, error.allowed) == ("model.width", "depth, bias")


def test_keyword_arguments_accept_every_name():
    check_arguments(lambda width, **options: None, {"width": 1, "other": 2}, "model")


def test_a_callable_without_a_signature_accepts_every_name():
    check_arguments(type, {"other": 2}, "model")


def decorated(function):
    @wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def test_what_a_wrapper_may_take_beside_what_it_wraps_passes_unless_it_is_nearly_a_declared_name():
    check_arguments(decorated(factory), {"width": 1, "num_labels": 2}, "model")
    error = error_of(decorated(factory), {"width": 1, "depths": 2}, "model")
    assert (error.key, error.suggestion) == ("model.depths", "depth")


# -- objects among the arguments


class Activation:
    def __init__(self, slope: float = 0.1, inner=None):
        raise AssertionError("nothing is built")


OBJECT = f"{__name__}:Activation"


@pytest.mark.parametrize(
    ("value", "key", "suggestion"),
    [
        ({"type": OBJECT, "slop": 1}, "model.width.slop", "slope"),
        ({"type": OBJECT, "inner": {"type": OBJECT, "slop": 1}}, "model.width.inner.slop", "slope"),
        ([1, {"type": OBJECT, "slop": 1}], "model.width.1.slop", "slope"),
        ({"first": [{"type": OBJECT, "slop": 1}]}, "model.width.first.0.slop", "slope"),
        ({"type": OBJECT.replace("Act", "akt")}, "model.width.type", "Activation"),
    ],
)
def test_what_is_wrong_with_an_object_stands_at_its_own_key(value, key, suggestion):
    error = error_of(factory, {"width": value}, "model")
    assert (error.key, error.suggestion) == (key, suggestion)


def test_all_mistakes_in_arguments_and_objects_are_found_at_once():
    error = error_of(
        factory, {"widht": 1, "depth": {"type": OBJECT, "slope": "steep", "inner": {"type": "no:No"}}}, "m"
    )
    keys = [e.key for e in (error, *error.others)]
    assert keys == ["m.widht", "m.width", "m.depth.slope", "m.depth.inner.type"]


def test_an_object_stands_where_a_plain_annotation_asks_for_a_value():
    check_arguments(annotated, {"width": {"type": OBJECT}}, "model")


@pytest.mark.parametrize("kind", ["linear", "scaling.linear", 3])
def test_a_mapping_whose_type_is_no_import_path_with_a_colon_is_data(kind):
    check_arguments(factory, {"width": {"type": kind, "factor": 2}}, "model")
