"""A section of the config becomes what it describes, or the user's mistake is said."""

from functools import partial
from textwrap import dedent

import pytest

from distopt.config import Component, validate
from distopt.errors import ConfigError
from distopt.registry import build, build_function


def component(name, **arguments):
    """Something of this very module, unless it has a colon."""
    name = name if ":" in name else f"{__name__}:{name}"
    return validate(Component, {"type": name, **arguments})


def error_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return caught.value


def make(**parts):
    return parts


def refuse(heads):
    raise ConfigError("heads", "is odd", given=heads)


class Part:
    def __init__(self, size, inner=None):
        self.size, self.inner = size, inner

    @classmethod
    def of_size(cls, size):
        return cls(size)


PART = f"{__name__}:Part"


def test_a_component_is_built_from_its_arguments_and_the_provided_ones():
    assert build(component("make", a=1), "dataset", "data.train", b=2) == {"a": 1, "b": 2}


def test_a_class_method_is_a_type():
    assert build(component("Part.of_size", size=3), "dataset", "data.train").size == 3


@pytest.mark.parametrize("raised", ["TypeError", "OSError", "ZeroDivisionError", "SystemExit"])
def test_what_a_constructor_raises_is_said_with_its_line(tmp_path, monkeypatch, raised):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / f"mine_{raised}.py"
    path.write_text(
        dedent(f"""\
            def make(heads):
                raise {raised}("heads must divide width")
            """)
    )
    error = error_of(build, component(f"{path.stem}:make", heads=3), "model", "model")
    assert error.key == "model"
    assert error.problem == f"{path.stem}:make raised {raised}: heads must divide width ({path}:2)"
    assert type(error.__cause__).__name__ == raised


def test_a_config_error_of_a_component_is_below_its_section():
    assert error_of(build, component("refuse", heads=3), "dataset", "data.train").key == "data.train.heads"


# -- objects among the arguments


def test_objects_are_built_before_what_they_are_arguments_of_at_any_depth():
    built = build(
        component(
            "make",
            one={"type": PART, "size": 1, "inner": {"type": PART, "size": 2}},
            many=[{"type": PART, "size": 3}, 4],
            by_name={"a": {"type": f"{PART}.of_size", "size": 5}, "b": {"type": "plain", "size": 6}},
        ),
        "model",
        "model",
    )
    assert (built["one"].size, built["one"].inner.size) == (1, 2)
    assert (built["many"][0].size, built["many"][1]) == (3, 4)
    assert built["by_name"]["a"].size == 5
    assert built["by_name"]["b"] == {"type": "plain", "size": 6}


def test_building_leaves_the_config_as_it_was():
    config = component("make", parts=[{"type": PART, "size": 1}])
    before = config.model_dump()
    build(config, "model", "model")["parts"].clear()
    assert config.model_dump() == before


def test_mistakes_in_an_object_are_found_before_anything_is_built():
    config = component("make", a={"type": f"{__name__}:refuse", "heads": 1}, b={"type": PART, "sise": 1})
    assert error_of(build, config, "model", "model").key == "model.b.sise"


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_the_constructor_of_an_object_raises_stands_at_its_key(name):
    config = component("make", **{name: [{"type": f"{__name__}:refuse", "heads": 1}]})
    assert error_of(build, config, "model", "model").key == f"model.{name}.0.heads"


# -- functions


def loss(output, target, power=1, *, weight=None):
    return abs(output - target) ** power


class Loss:
    def __init__(self, power):
        self.power = power

    def __call__(self, output, target):
        return loss(output, target, self.power)


@pytest.mark.parametrize("name", ["loss", "Loss"])
def test_a_function_has_its_arguments_bound_and_a_class_is_an_instance(name):
    assert build_function(component(name, power=2), "loss", "loss", takes=2)(5, 2) == 9


def test_a_function_without_arguments_is_itself():
    assert build_function(component("loss"), "loss", "loss", takes=2) is loss


def test_a_loss_of_torch_has_its_short_name():
    from torch import nn

    built = build_function(
        validate(Component, {"type": "CrossEntropyLoss", "label_smoothing": 0.1}), "loss", "loss", takes=2
    )
    assert isinstance(built, nn.CrossEntropyLoss)
    assert built.label_smoothing == 0.1


def test_objects_among_the_arguments_of_a_function_are_built():
    built = build_function(component("loss", weight={"type": PART, "size": 1}), "loss", "loss", takes=2)
    assert isinstance(built, partial)
    assert built.keywords["weight"].size == 1


@pytest.mark.parametrize(
    ("given", "allowed"),
    [({"target": 1}, "power, weight"), ({"powr": 1}, "power, weight")],
)
def test_what_a_function_is_called_with_is_not_the_users_to_give(given, allowed):
    error = error_of(build_function, component("loss", **given), "loss", "loss", takes=2)
    assert (error.key, error.allowed) == (f"loss.{next(iter(given))}", allowed)


@pytest.mark.parametrize("name", ["refuse", "builtins:len"])
def test_a_function_that_takes_fewer_arguments_than_it_is_called_with_is_refused(name):
    error = error_of(build_function, component(name), "loss", "loss", takes=2)
    assert error.key == "loss.type"
    assert error.problem == "is called with 2 arguments by position, and takes 1"


def test_a_class_whose_instances_cannot_be_called_is_refused():
    error = error_of(build_function, component("Part", size=1), "loss", "loss", takes=2)
    assert (error.key, error.problem) == ("loss.type", "its instances cannot be called")


# -- the libraries that people bring


@pytest.mark.slow
def test_a_model_of_transformers_is_built_from_its_config():
    pytest.importorskip("transformers")
    config = {"type": "transformers:GPT2Config", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 16}
    model = build(component("transformers:GPT2LMHeadModel", config=config), "model", "model")
    assert len(model.transformer.h) == 1


@pytest.mark.slow
def test_a_model_of_transformers_is_loaded_by_its_class_method(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    of_files = component(
        "transformers:AutoModelForCausalLM.from_pretrained", pretrained_model_name_or_path=str(tmp_path)
    )
    assert type(build(of_files, "model", "model")) is transformers.GPT2LMHeadModel


@pytest.mark.slow
@pytest.mark.parametrize(("name", "suggestion"), [("n_layers", "n_layer"), ("vocabsize", "vocab_size")])
def test_a_misspelt_argument_of_a_transformers_config_is_found(name, suggestion):
    pytest.importorskip("transformers")
    config = {"type": "transformers:GPT2Config", name: 2}
    error = error_of(build, component("transformers:GPT2LMHeadModel", config=config), "model", "model")
    assert (error.key, error.suggestion) == (f"model.config.{name}", suggestion)


@pytest.mark.slow
def test_what_a_transformers_config_takes_without_declaring_it_passes():
    pytest.importorskip("transformers")
    built = build(
        component("transformers:BertConfig", num_labels=3, attn_implementation="eager"), "object", "a"
    )
    assert built.num_labels == 3


@pytest.mark.slow
def test_what_torchmetrics_refuses_is_said_in_its_words():
    pytest.importorskip("torchmetrics")
    config = validate(Component, {"type": "Accuracy", "task": "multiclass", "num_clases": 3})
    error = error_of(build, config, "metric", "eval.metrics.accuracy")
    assert error.key == "eval.metrics.accuracy"
    assert error.problem.startswith("Accuracy raised ")
