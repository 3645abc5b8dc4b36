"""A `type:` becomes what it names, and its mistakes are the user's to read."""

import subprocess
import sys
from textwrap import dedent

import pytest

from distopt.config import Component, validate
from distopt.errors import ConfigError
from distopt.registry import build, check_arguments, check_name, resolve


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module `mine.net` (or another) into the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)

    def write(text, name="mine.net"):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text))
        return path

    yield write
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "mine":
            del sys.modules[name]


def component(**keys):
    return validate(Component, keys)


def error_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return caught.value


# -- names


def test_a_short_name_is_resolved():
    from distopt.models import ByteGPT

    assert resolve("ByteGPT", "model", "model.type") is ByteGPT


@pytest.mark.parametrize(
    "name", ["AdamW", "torch.optim.AdamW", "torch.optim:AdamW", "torch.optim.adamw:AdamW"]
)
def test_every_optimizer_of_torch_has_its_short_name_and_import_path(name):
    import torch

    assert resolve(name, "optimizer", "optimizer.type") is torch.optim.AdamW


def test_the_short_names_of_optimizers_are_those_that_torch_has():
    import torch

    allowed = error_of(check_name, "Nothing", "optimizer", "optimizer.type").allowed
    names = allowed.removesuffix(" or an import path (package.module:Name)").split(", ")
    exported = [getattr(torch.optim, name) for name in torch.optim.__all__]
    optimizers = [c for c in exported if isinstance(c, type) and c is not torch.optim.Optimizer]
    assert names == [c.__name__ for c in optimizers]


@pytest.mark.parametrize(
    ("name", "kind", "suggestion"),
    [
        ("ByteGTP", "model", "ByteGPT"),
        ("stdlibtext", "dataset", "StdlibText"),
        ("AdamWW", "optimizer", "AdamW"),
        ("torch.optim.AdamWW", "optimizer", "AdamW"),
        ("Optimizer", "optimizer", None),
        ("ByteGPT", "dataset", None),
    ],
)
def test_an_unknown_short_name_has_the_nearest_suggested(name, kind, suggestion):
    error = error_of(check_name, name, kind, "some.type")
    assert (error.key, error.problem, error.given) == ("some.type", "unknown type", name)
    if suggestion:
        assert error.suggestion == suggestion


@pytest.mark.parametrize("name", ["a:b:c", "a..b", ":b", "a:", "a b.c", "my-pkg.net:Net"])
def test_what_cannot_be_an_import_path_is_said(name):
    assert (
        error_of(check_name, name, "model", "model.type").problem == "neither a short name nor an import path"
    )


def test_names_are_checked_without_torch():
    code = """
import sys
from distopt.registry import check_name
for name, kind in [("AdamW", "optimizer"), ("ByteGPT", "model"), ("mine.net:Net", "model")]:
    check_name(name, kind, "type")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# -- imports


@pytest.mark.parametrize("name", ["mine.net:Net", "mine.net.Net", "mine.net:Net.Inner"])
def test_modules_of_the_working_directory_are_found(module, name):
    module("class Net:\n    class Inner: pass")
    assert resolve(name, "dataset", "data.train.type").__module__ == "mine.net"


@pytest.mark.parametrize(
    ("name", "missing", "suggestion"),
    [
        ("mine.nett:Net", "mine.nett", "mine.net"),
        ("minee.net:Net", "minee", "mine"),
        ("mine.net.Outer.Inner", "mine.net.Outer", None),
    ],
)
def test_a_module_that_does_not_exist_is_named_with_the_nearest(module, name, missing, suggestion):
    module("class Net: pass")
    module("", "mine.__init__")
    error = error_of(resolve, name, "model", "model.type")
    assert (error.problem, error.suggestion) == (f"there is no module {missing}", suggestion)


def test_a_module_that_raises_is_shown_with_its_own_line(module):
    path = module("import json\n\njson.loads('{')\n")
    error = error_of(resolve, "mine.net:Net", "model", "model.type")
    assert error.problem.startswith("importing mine.net raised JSONDecodeError: ")
    assert error.problem.endswith(f"({path}:3)")


def test_a_module_that_lacks_a_dependency_is_shown_with_its_own_line(module):
    path = module("\nimport not_installed\n")
    error = error_of(resolve, "mine.net:Net", "model", "model.type")
    assert error.problem == (
        f"importing mine.net raised ModuleNotFoundError: No module named 'not_installed' ({path}:2)"
    )


def test_a_module_with_a_syntax_error_is_shown_with_its_own_line(module):
    path = module("x = 1\ndef f(:\n")
    error = error_of(resolve, "mine.net:Net", "model", "model.type")
    assert error.problem == f"importing mine.net raised SyntaxError: invalid syntax ({path}:2)"


def test_a_module_that_exits_does_not_end_the_program(module):
    module("raise SystemExit(0)")
    assert "raised SystemExit" in error_of(resolve, "mine.net:Net", "model", "model.type").problem


def test_a_missing_attribute_has_the_nearest_suggested(module):
    module("class Network: pass")
    error = error_of(resolve, "mine.net:Netwrok", "model", "model.type")
    assert (error.problem, error.suggestion) == ("mine.net has no Netwrok", "Network")


def test_what_cannot_be_called_is_refused(module):
    module("Net = 3")
    assert (
        error_of(resolve, "mine.net:Net", "model", "model.type").problem
        == "neither a class nor a function, but of type int"
    )


@pytest.mark.parametrize(
    ("name", "kind", "problem", "allowed"),
    [
        (
            "torch.nn.Linear",
            "optimizer",
            "not a torch.optim.Optimizer",
            "a subclass of torch.optim.Optimizer",
        ),
        ("torch.optim:AdamW", "model", "not a torch.nn.Module", "a subclass of torch.nn.Module"),
        ("torch.nn.functional:relu", "module", "not a class", "a subclass of torch.nn.Module"),
    ],
)
def test_a_class_of_another_kind_is_refused(name, kind, problem, allowed):
    error = error_of(resolve, name, kind, "some.type")
    assert (error.problem, error.allowed) == (problem, allowed)


# -- arguments


def factory(width, depth=2, *, bias=True):
    return width, depth, bias


def test_arguments_that_fit_pass():
    check_arguments(factory, {"width": 3, "bias": False}, "model")


def test_unknown_and_missing_arguments_are_all_named():
    error = error_of(check_arguments, factory, {"widht": 3, "heads": 2}, "model")
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
    error = error_of(check_arguments, annotated, {argument: value}, "model")
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
    error = error_of(check_arguments, factory, {"width": 1}, "model", provided=("width",))
    assert (error.key, error.allowed) == ("model.width", "depth, bias")


def test_keyword_arguments_accept_every_name():
    check_arguments(lambda width, **options: None, {"width": 1, "other": 2}, "model")


def test_a_callable_without_a_signature_accepts_every_name():
    check_arguments(type, {"other": 2}, "model")


# -- building


def test_a_component_is_built_from_its_arguments_and_the_provided_ones(module):
    module("def make(a, b): return a, b")
    assert build(component(type="mine.net:make", a=1), "dataset", "data.train", b=2) == (1, 2)


@pytest.mark.parametrize("raised", ["TypeError", "OSError", "ZeroDivisionError"])
def test_what_a_constructor_raises_is_said_with_its_line(module, raised):
    path = module(f"""\
        def make(heads):
            raise {raised}("heads must divide width")
        """)
    error = error_of(build, component(type="mine.net:make", heads=3), "model", "model")
    assert error.key == "model"
    assert error.problem == f"mine.net:make raised {raised}: heads must divide width ({path}:2)"
    assert type(error.__cause__).__name__ == raised


def test_a_config_error_of_a_component_is_below_its_section():
    error = error_of(build, component(type="StdlibText", split="test"), "dataset", "data.train")
    assert error.key == "data.train.split"
