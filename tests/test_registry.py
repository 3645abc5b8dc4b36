"""A `type:` becomes what it names, and its mistakes are the user's to read."""

import subprocess
import sys
from textwrap import dedent

import pytest

from distopt.errors import ConfigError
from distopt.registry import check_name, resolve, short_names


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


def test_the_short_names_of_losses_are_those_that_torch_has():
    from torch import nn

    for name in ("CrossEntropyLoss", "MSELoss"):
        assert resolve(name, "loss", "loss.type") is getattr(nn, name)
    assert all(hasattr(nn, name) for name in short_names("loss"))


@pytest.mark.slow
def test_the_short_names_of_metrics_are_those_that_torchmetrics_has():
    torchmetrics = pytest.importorskip("torchmetrics")
    assert resolve("Accuracy", "metric", "type") is torchmetrics.Accuracy
    assert set(short_names("metric")) == {*torchmetrics.__all__} - {"functional"}


@pytest.mark.parametrize("name", ["Accuracy", "mine.net:Metric"])
def test_a_metric_without_torchmetrics_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    error = error_of(check_name, name, "metric", "eval.metrics.accuracy.type")
    assert error.problem == "needs torchmetrics: pip install 'distopt[metrics]'"


def test_more_names_than_one_reads_are_not_listed():
    pytest.importorskip("torchmetrics")
    error = error_of(check_name, "Acuracy", "metric", "some.type")
    assert error.suggestion == "Accuracy"
    assert error.allowed == "a name of torchmetrics's or an import path (package.module:Name)"


@pytest.mark.parametrize(
    ("name", "kind", "suggestion"),
    [
        ("ByteGTP", "model", "ByteGPT"),
        ("stdlibtext", "dataset", "StdlibText"),
        ("AdamWW", "optimizer", "AdamW"),
        ("torch.optim.AdamWW", "optimizer", "AdamW"),
        ("Optimizer", "optimizer", None),
        ("ByteGPT", "dataset", None),
        ("casual_lm", "collate", "causal_lm"),
        ("CrossEntropy", "loss", "CrossEntropyLoss"),
        ("EarlyStopping", "callback", "EarlyStop"),
        ("Thing", "object", None),
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
for name, kind in [("AdamW", "optimizer"), ("MSELoss", "loss"), ("ByteGPT", "model"), ("a.b:C", "model")]:
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


@pytest.mark.parametrize("raised", ["ImportError", "RuntimeError"])
def test_a_module_that_raises_on_access_is_shown_with_its_own_line(module, raised):
    path = module(f"def __getattr__(name):\n    raise {raised}('vision is missing')\n")
    problem = error_of(resolve, "mine.net:Net", "model", "model.type").problem
    assert problem == f"mine.net.Net raised {raised}: vision is missing ({path}:2)"


def test_an_attribute_of_what_has_no_name_is_missing_too():
    assert error_of(resolve, "math:pi.x", "model", "model.type").problem == "math.pi has no x"


def test_a_method_is_refused(module):
    module("class Net:\n    def make(self, width): pass\n    @staticmethod\n    def of(width): pass")
    problem = error_of(resolve, "mine.net:Net.make", "model", "model.type").problem
    assert problem == "a method, which is called on an instance"
    assert resolve("mine.net:Net.of", "model", "model.type")


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
        (
            "torch.nn:Linear",
            "callback",
            "not a distopt.callbacks.Callback",
            "a subclass of distopt.callbacks.Callback",
        ),
        ("torch.nn.functional:relu", "module", "not a class", "a subclass of torch.nn.Module"),
    ],
)
def test_a_class_of_another_kind_is_refused(name, kind, problem, allowed):
    error = error_of(resolve, name, kind, "some.type")
    assert (error.problem, error.allowed) == (problem, allowed)
