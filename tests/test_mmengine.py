"""The rules of `paramwise_cfg` against MMEngine itself: the same values for every parameter.

Left out are distopt's deliberate deviations: a multiplier without what it multiplies, a bad number and an
option that the optimizer does not have are errors (no case has one); a key without a match is one, unless it
may be a warning (as here); RMSNorm is a norm unless `norm_types: mmengine` (as here); a model's own child
called `module` is not taken for a wrapper's (no root has one); frozen parameters are in no group, not even
without `paramwise_cfg` (trainable ones are compared); torchvision's deformable convolution is one, too (there
is only mmcv's). `custom_keys_mode: combine`, patterns and wrapped models MMEngine does not have.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

from distopt import ConfigError, build_optimizer
from distopt.config.document import parse
from tests import trees
from tests.trees import Case

Section = Mapping[str, Any]
Oracle = Callable[[nn.Module, Section], torch.optim.Optimizer]
PAGE = (Path(__file__).parents[1] / "docs" / "coming-from-mmengine.md").read_text()


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """Builds an optimizer as MMEngine does, which is made to believe that mmcv is there."""
    optim = pytest.importorskip("mmengine.optim", reason="mmengine-lite is not here", exc_type=ImportError)
    logger = sys.modules["mmengine.logging"].MMLogger.get_current_instance()
    ops = ModuleType("mmcv.ops")
    vars(ops).update(DeformConv2d=trees.DeformConv2d, ModulatedDeformConv2d=trees.ModulatedDeformConv2d)

    def build(model: nn.Module, section: Section) -> torch.optim.Optimizer:
        outside = {name: section[name] for name in ("paramwise_cfg", "constructor") if name in section}
        inside = {name: value for name, value in section.items() if name not in outside}
        built: torch.optim.Optimizer = optim.build_optim_wrapper(
            model, {"optimizer": inside, **outside}
        ).optimizer
        return built

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "disabled", True)
        patch.setitem(sys.modules, "mmcv.ops", ops)
        default = sys.modules[optim.DefaultOptimWrapperConstructor.__module__]
        patch.setattr(default, "mmcv_full_available", lambda: True)
        yield build


def distopts(model: nn.Module, section: Section) -> torch.optim.Optimizer:
    """The same from distopt, with its deviations off."""
    section = {**section, "unmatched_keys": "warn"}
    if section.get("paramwise_cfg"):
        section["paramwise_cfg"] = {**section["paramwise_cfg"], "norm_types": "mmengine"}
    return build_optimizer(model, section)


def values(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """FQN → lr, weight decay and momentum; the groups own every trainable parameter once."""
    options = "lr", "weight_decay", "momentum"
    owned = [
        (id(parameter), tuple(group.get(option) for option in options))
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    ]
    trainable = {fqn: id(p) for fqn, p in model.named_parameters() if p.requires_grad}
    assert sorted(owner for owner, _ in owned) == sorted(trainable.values())
    return {fqn: dict(owned)[owner] for fqn, owner in trainable.items()}


def hold_against(oracle: Oracle, model: nn.Module, section: Section) -> None:
    try:
        theirs = values(oracle(model, section), model)
    except ValueError as error:
        if "some parameters appear in more than one parameter group" not in str(error):
            raise
        with pytest.raises(ConfigError, match="one parameter has several names"):
            distopts(model, section)
    else:
        assert values(distopts(model, section), model) == theirs


@pytest.mark.slow
@trees.examples(500)
@given(case=trees.cases().filter(lambda case: "module" not in dict(case.tree.root.children)))
def test_any_model_and_config_get_mmengines_values(oracle: Oracle, case: Case) -> None:
    hold_against(oracle, case.tree.build(), case.config)


SMALL: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "vocab_size": 64,
    },
    "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 64},
    "T5ForConditionalGeneration": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "vocab_size": 64},
    "ViTForImageClassification": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2},
    "SwinForImageClassification": {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]},
    "ConvNextForImageClassification": {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2},
    "LlamaForCausalLM": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "tie_word_embeddings": True,
    },
}
"""Architectures of transformers, and what makes them small."""
RULES: list[dict[str, Any]] = [
    {},
    {"norm_decay_mult": 0},
    {"norm_decay_mult": 0, "bias_decay_mult": 0, "flat_decay_mult": 0, "bypass_duplicate": True},
    {"bias_lr_mult": 2, "dwconv_decay_mult": 0.5, "flat_decay_mult": 0.1, "bypass_duplicate": True},
    {
        "norm_decay_mult": 0.5,
        "bypass_duplicate": True,
        "custom_keys": {
            "embed": {"lr_mult": 0.1},
            "layer": {"decay_mult": 0.3},
            "layers.0": {"lr_mult": 0.5, "momentum": 0.5},
            "norm": {"decay_mult": 0},
            ".weight": {},
            "classifier": {"lr_mult": 10, "weight_decay": 0},
        },
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("paramwise", RULES, ids=lambda rules: "+".join(rules) or "none")
@pytest.mark.parametrize("name", SMALL)
def test_real_architectures_get_mmengines_values(
    oracle: Oracle, name: str, paramwise: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**SMALL[name]))
    section = {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "paramwise_cfg": paramwise}
    hold_against(oracle, model, section)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.head = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))


PASSED = [
    {"lr": 1, "paramwise_cfg": {"norm_decay_mul": 0}},
    {"lr": 1, "paramwise_cfg": {"custom_keys": {"head": {"lr_mul": 2}}}},
    {"lr": 1, "paramwise_cfg": {"custom_keys": {"head": {"momentun": 0.9}}}},
    {"lr": 1, "paramwise_cfg": {"custom_keys": {"haed": {"lr_mult": 2}}}},
    {"lr": 1, "paramwise_cfg": {"custom_keys": {"": {"lr_mult": 2}}}},
    {"lr": 1, "paramwise_cfg": {"bias_lr_mult": -1}},
    {"lr": 1, "paramwise_cfg": {"bias_lr_mult": float("inf")}},
    {"lr": 1, "paramwise_cfg": {"flat_decay_mult": 0}},
    {"paramwise_cfg": {"dcn_offset_lr_mult": 0.1}},
]


@pytest.mark.parametrize("section", PASSED, ids=str)
def test_what_mmengine_lets_pass_is_an_error(oracle: Oracle, section: Section) -> None:
    oracle(Net(), {"type": "SGD", **section})
    with pytest.raises(ConfigError):
        build_optimizer(Net(), {"type": "SGD", **section})


def test_mmengine_alone_takes_a_child_called_module_for_the_model(oracle: Oracle) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    section = {"type": "SGD", "lr": 0.1, "paramwise_cfg": {"bias_lr_mult": 2}}
    assert sum(len(group["params"]) for group in oracle(model, section).param_groups) == 2
    assert set(values(build_optimizer(model, section), model)) == {
        "module.weight",
        "module.bias",
        "head.weight",
        "head.bias",
    }


def blocks(pattern: str) -> list[Any]:
    return re.findall(pattern, PAGE, re.MULTILINE | re.DOTALL)


EXAMPLES = blocks(r"^```python\n(optim_wrapper = .*?)^```\s*^```yaml\n(.*?)^```")
[CLASSIFIER, *_] = blocks(r"^```python\n(.*?)^```")
[BY_DEPTH] = blocks(r"^```python by_depth.py\n(.*?)^```")


def layer_decay(optim: Any) -> type:
    """What by_depth.py is on the page, as a constructor of MMEngine's."""

    class LayerDecayOptimWrapperConstructor(optim.DefaultOptimWrapperConstructor):  # type: ignore[misc]
        def add_params(self, params: Any, module: nn.Module, lr: float | None = None) -> None:
            lr = self.base_lr if lr is None else lr
            params += [{"params": [own], "lr": lr} for own in module.parameters(recurse=False)]
            for child in module.children():
                self.add_params(params, child, lr * self.paramwise_cfg["decay_factor"])

    return LayerDecayOptimWrapperConstructor


@pytest.mark.parametrize(
    ("theirs", "ours"), EXAMPLES, ids=["no rules", "precision", "by kind", "by name", "constructor"]
)
def test_the_examples_of_the_page_give_mmengines_values(
    oracle: Oracle, theirs: str, ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("by_depth.py").write_text(BY_DEPTH)
    constructors = sys.modules["mmengine.registry"].OPTIM_WRAPPER_CONSTRUCTORS
    constructors.register_module(module=layer_decay(sys.modules["mmengine.optim"]), force=True)
    written: dict[str, Any] = {}
    exec(CLASSIFIER + theirs, written)
    section = {**written["optim_wrapper"], **written["optim_wrapper"]["optimizer"]}
    for outside in ("optimizer", "accumulative_counts", "clip_grad"):
        section.pop(outside, None)
    model = written["Classifier"]()
    found = build_optimizer(model, parse(ours, "example")[0]["optimizer"])
    assert values(found, model) == values(oracle(model, section), model)
