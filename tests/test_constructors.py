"""Constructors of the user's own, by import path."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from distopt import ConfigError, Plan, build_optimizer, load_config, make_plan
from distopt.optim import Census, Constructor, DefaultOptimWrapperConstructor, Entry, Place, Verdict

PAGE = Path(__file__).parents[1] / "docs" / "constructors.md"
BASE = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1}


class ByShape(Constructor):
    """A rate for matrices, and no rule of paramwise_cfg."""

    def decide(self, entry: Entry, place: Place) -> Verdict:
        if len(entry.shape) < 2:
            return Verdict("default")
        lr = self.config.arguments["lr"] * self.config.paramwise.own["matrix"]
        return Verdict("matrix", ("matrix",), {"lr": lr}, {"lr": f"{lr:g} (matrix)"})


class LastSlower(DefaultOptimWrapperConstructor):
    """The rules of paramwise_cfg; what is last in the census is `slower`."""

    def __init__(self, config, census: Census) -> None:
        super().__init__(config, census)
        self.last = census.entries[-1].fqn

    def decide(self, entry: Entry, place: Place) -> Verdict:
        verdict = super().decide(entry, place)
        if place.fqn != self.last:
            return verdict
        lr = self.config.arguments["lr"] * self.config.paramwise.own["slower"]
        return Verdict(f"last.{verdict.label}", ("last", *verdict.rules), {**verdict.options, "lr": lr})


class Mistyped(Constructor):
    def decide(self, entry: Entry, place: Place) -> Verdict:
        return Verdict("all", options={"params": [], "learning_rate": 1.0})


class Malformed(Constructor):
    def decide(self, entry: Entry, place: Place) -> Verdict:
        return Verdict(**{"label": "all", **self.config.paramwise.own["verdict"]})


class PartlyBlind(Constructor):
    """Knows one name of each parameter only."""

    def decide(self, entry: Entry, place: Place) -> Verdict:
        return {entry.fqn: Verdict("default")}[place.fqn]


class Unrelated:
    def __init__(self, config, census) -> None:
        pass


class Undecided(Constructor):
    """Has no `decide`."""


class Refusing(Constructor):
    def __init__(self, config, census: Census) -> None:
        raise ConfigError("optimizer.paramwise_cfg.mine", "out of range")

    def decide(self, entry: Entry, place: Place) -> Verdict:
        raise AssertionError


class Forgetful(Constructor):
    def decide(self, entry: Entry, place: Place) -> Verdict:
        return {"lr": 1.0}


class Failing(Constructor):
    def decide(self, entry: Entry, place: Place) -> Verdict:
        raise KeyError(place.fqn)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)


def plan(name: str, model: nn.Module | None = None, **paramwise) -> Plan:
    constructor = f"tests.test_constructors:{name}"
    return make_plan(
        Net() if model is None else model,
        {**BASE, "constructor": constructor, "paramwise_cfg": paramwise},
    )


def rates(found: Plan) -> dict[str, tuple[float, list[str]]]:
    return {group.name: (group.options["lr"], group.param_names) for group in found.groups}


def test_a_constructor_decides_alone_with_keys_of_its_own():
    assert rates(plan("ByShape", matrix=2)) == {
        "default": (1e-3, ["norm.weight", "norm.bias", "hidden.bias", "head.bias"]),
        "matrix": (2e-3, ["hidden.weight", "head.weight"]),
    }


def test_a_constructor_may_add_to_the_rules_of_paramwise_cfg():
    found = plan("LastSlower", slower=0.5, bias_decay_mult=0, custom_keys={"norm": {"lr_mult": 2}})
    assert rates(found) == {
        "norm": (2e-3, ["norm.weight", "norm.bias"]),
        "default": (1e-3, ["hidden.weight", "head.weight"]),
        "bias": (1e-3, ["hidden.bias"]),
        "last.bias": (5e-4, ["head.bias"]),
    }
    assert found.groups[-1].options["weight_decay"] == 0


def test_a_constructor_of_ones_own_sees_the_model_as_it_was_written():
    model = Net()
    model.hidden = checkpoint_wrapper(torch.compile(model.hidden, backend="eager"))
    wrapped = torch.compile(checkpoint_wrapper(model), backend="eager")
    assert plan("LastSlower", wrapped, slower=0.5) == plan("LastSlower", slower=0.5)


def test_the_optimizer_is_built_from_it():
    cfg = {
        **BASE,
        "constructor": "tests.test_constructors:ByShape",
        "paramwise_cfg": {"matrix": 2},
    }
    assert [group["lr"] for group in build_optimizer(Net(), cfg).param_groups] == [1e-3, 2e-3]


def test_a_key_that_does_not_match_is_an_error_of_a_subclass_of_the_default_too():
    with pytest.raises(ConfigError, match="matches no parameter"):
        plan("LastSlower", slower=0.5, custom_keys={"missing": {"lr_mult": 2}})


def test_a_key_that_the_constructor_misses_is_said_with_its_line():
    with pytest.raises(ConfigError, match=r"KeyError: 'matrix' \(.*test_constructors.py:\d+\)") as caught:
        plan("ByShape", norm_decay_mult=0)
    assert caught.value.key == "optimizer.constructor"


def test_a_class_that_is_no_constructor_is_refused():
    with pytest.raises(ConfigError, match=r"not a distopt\.optim\.Constructor") as caught:
        plan("Unrelated", mine=1)
    assert caught.value.key == "optimizer.constructor"


def test_a_class_that_does_not_decide_is_refused():
    with pytest.raises(ConfigError, match=r"abstract.*decide") as caught:
        plan("Undecided", mine=1)
    assert caught.value.key == "optimizer.constructor"


def test_a_constructors_own_config_error_is_kept():
    with pytest.raises(ConfigError, match="out of range") as caught:
        plan("Refusing", mine=1)
    assert caught.value.key == "optimizer.paramwise_cfg.mine"


def test_a_decision_that_is_no_verdict_is_refused():
    with pytest.raises(ConfigError, match=r"norm\.weight") as caught:
        plan("Forgetful", mine=1)
    assert caught.value.key == "optimizer.constructor"


def test_what_a_decision_raises_is_said_with_its_line():
    with pytest.raises(ConfigError, match=r"KeyError: 'norm.weight' \(.*test_constructors.py:\d+\)"):
        plan("Failing", mine=1)


def test_a_short_name_that_is_near_is_suggested():
    with pytest.raises(ConfigError, match="did you mean: DefaultOptimWrapperConstructor"):
        make_plan(Net(), {**BASE, "constructor": "DefaultOptimiserConstructor"})


def test_the_constructor_of_the_docs_does_what_they_say(tmp_path, monkeypatch):
    *_, code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    settings = re.search(r"^`(paramwise_cfg: \{base_width.*?\})`", PAGE.read_text(), re.M)[1]
    (tmp_path / "width_scaled.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = {**BASE, "constructor": "width_scaled:WidthScaled", **yaml.safe_load(settings)}
    assert rates(make_plan(Net(), cfg)) == {
        "norm": (1e-3, ["norm.weight", "norm.bias"]),
        "width4": (1e-3 * 64 / 4, ["hidden.weight", "head.weight"]),
        "default": (1e-3, ["hidden.bias", "head.bias"]),
    }


def test_a_config_file_takes_a_constructors_keys(tmp_path):
    path = tmp_path / "cfg.yaml"
    path.write_text(
        "model: {type: ByteGPT}\n"
        "data: {train: {type: StdlibText}, batch_size: 8}\n"
        "max_steps: 1\n"
        "optimizer: {type: SGD, lr: 0.1, constructor: 'tests.test_constructors:ByShape',"
        " paramwise_cfg: {matrix: 2}}\n"
    )
    assert load_config(path).optimizer.paramwise.own == {"matrix": 2}


def test_options_that_the_optimizer_does_not_have_are_refused():
    cfg = {**BASE, "constructor": "tests.test_constructors:Mistyped"}
    with pytest.raises(ConfigError, match=r"Mistyped\.decide gives weight options .*: params, learning_rate"):
        make_plan(nn.Linear(2, 2), cfg)


@pytest.mark.parametrize(
    "wrong",
    [
        {"label": 3},
        {"label": None},
        {"rules": "mine"},
        {"rules": ["mine"]},
        {"rules": (1,)},
        {"options": None},
        {"options": [("lr", 1.0)]},
        {"options": {1: 1.0}},
        {"why": "because"},
    ],
    ids=str,
)
def test_a_verdict_of_other_types_is_refused_with_what_is_wrong(wrong):
    [name] = wrong
    with pytest.raises(ConfigError, match=rf"Malformed\.decide gives .* whose {name} is") as caught:
        plan("Malformed", verdict=wrong)
    assert caught.value.key == "optimizer.constructor"


def test_what_a_decision_on_an_alias_raises_is_said_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with pytest.raises(ConfigError, match=r"optimizer\.constructor: raised KeyError"):
        make_plan(model, {**BASE, "constructor": "tests.test_constructors:PartlyBlind"})
