"""Layer-wise learning rates: which layer a parameter is in, and what that makes of its learning rate."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from distopt import ConfigError, Plan, build_optimizer, make_plan
from tests.kit import run_distributed

BASE = {
    "type": "AdamW",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "constructor": "LearningRateDecayOptimWrapperConstructor",
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)


class Net(nn.Module):
    """Layers 0 … 4: the token and the embedding, three blocks, the norm and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(4))
        self.embedding = nn.Embedding(8, 4)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.embedding(tokens) + self.cls_token)))


def plan(model: nn.Module, rate: float = 0.75, **paramwise) -> Plan:
    return make_plan(model, {**BASE, "paramwise_cfg": {"layer_decay_rate": rate, **paramwise}})


def groups(model: nn.Module, **paramwise) -> dict[str, tuple[str, float]]:
    """FQN → its group and learning rate."""
    return {
        fqn: (group.name, group.options["lr"])
        for group in plan(model, **paramwise).groups
        for fqn in group.param_names
    }


def test_layers_count_from_the_embedding_over_the_blocks_to_the_head():
    found = groups(Net())
    assert found["cls_token"] == found["embedding.weight"] == ("layer0", 1e-3 * 0.75**4)
    assert found["blocks.0.linear.weight"] == found["blocks.0.norm.bias"] == ("layer1", 1e-3 * 0.75**3)
    assert found["blocks.1.linear.bias"] == ("layer2", 1e-3 * 0.75**2)
    assert found["blocks.2.linear.weight"] == ("layer3", 1e-3 * 0.75)
    assert found["norm.weight"] == found["head.weight"] == found["head.bias"] == ("layer4", 1e-3)


def test_what_stands_between_two_blocks_belongs_to_the_former():
    model = nn.Sequential(nn.Linear(4, 4), Block(), nn.Linear(4, 4), Block(), nn.Linear(4, 4))
    assert {fqn: group for fqn, (group, _) in groups(model).items() if fqn.endswith("weight")} == {
        "0.weight": "layer0",
        "1.norm.weight": "layer1",
        "1.linear.weight": "layer1",
        "2.weight": "layer1",
        "3.norm.weight": "layer2",
        "3.linear.weight": "layer2",
        "4.weight": "layer3",
    }


def test_each_layer_has_a_group_for_each_decay():
    found = plan(Net(), norm_decay_mult=0)
    decays = {group.name: group.options["weight_decay"] for group in found.groups}
    assert decays == {
        "layer0": 0.1,
        "layer1.norm": 0,
        "layer1": 0.1,
        "layer2.norm": 0,
        "layer2": 0.1,
        "layer3.norm": 0,
        "layer3": 0.1,
        "layer4.norm": 0,
        "layer4": 0.1,
    }


def test_the_arithmetic_is_kept():
    by_name = {group.name: group for group in plan(Net(), bias_lr_mult=2).groups}
    assert by_name["layer2"].why == {"lr": "0.001 × 0.5625 (layer_decay_rate ^ 2) = 0.0005625"}
    assert by_name["layer2.bias"].why == {
        "lr": "0.001 × 2 (bias_lr_mult) × 0.5625 (layer_decay_rate ^ 2) = 0.001125"
    }


def test_the_multiplier_of_a_custom_key_multiplies():
    found = plan(Net(), custom_keys={"head": {"lr_mult": 10}, "blocks.0": {"lr_mult": 2, "name": "first"}})
    by_name = {group.name: group for group in found.groups}
    assert by_name["layer4.head"].options["lr"] == 1e-3 * 10
    assert by_name["layer1.first"].options["lr"] == 1e-3 * 2 * 0.75**3


def test_a_key_without_a_multiplier_still_has_its_layers_rate():
    found = plan(Net(), norm_decay_mult=0, custom_keys={"cls_token": {"decay_mult": 0}})
    token = next(group for group in found.groups if group.name == "layer0.cls_token")
    assert (token.options["lr"], token.options["weight_decay"]) == (1e-3 * 0.75**4, 0)


def test_an_absolute_lr_of_a_custom_key_stays_and_its_group_is_one():
    found = plan(Net(), custom_keys={"norm": {"lr": 5e-4}})
    norm = next(group for group in found.groups if group.name == "norm")
    assert norm.options["lr"] == 5e-4
    assert len(norm.param_names) == 8


def test_keys_and_kinds_combine():
    mode = {"custom_keys_mode": "combine", "custom_keys": {"blocks": {"lr_mult": 0.5}}}
    found = groups(Net(), norm_decay_mult=0, **mode)
    assert found["blocks.1.norm.bias"] == ("layer2.blocks.norm", 1e-3 * 0.5 * 0.75**2)


def test_the_optimizer_gets_the_rates():
    optimizer = build_optimizer(Net(), {**BASE, "paramwise_cfg": {"layer_decay_rate": 0.5}})
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3 * 0.5**i for i in (4, 3, 2, 1, 0)]


def test_without_a_rate_it_is_an_error():
    with pytest.raises(ConfigError, match="missing") as caught:
        make_plan(Net(), {**BASE, "paramwise_cfg": {"norm_decay_mult": 0}})
    assert caught.value.key == "optimizer.paramwise_cfg.layer_decay_rate"


def test_a_model_without_blocks_is_an_error():
    with pytest.raises(ConfigError, match="nothing in it is repeated") as caught:
        plan(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert caught.value.key == "optimizer.paramwise_cfg.layer_decay_rate"
    assert "get_layer_depth" in str(caught.value)


class Backbone(nn.Module):
    """Counts its layers as the models of mmpretrain do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.body = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm = nn.LayerNorm(4)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        num_layers = len(self.body) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        first, number = param_name.removeprefix(prefix).split(".")[:2]
        if first == "body":
            return int(number) + 1, num_layers
        return 0 if first == "stem" else num_layers - 1, num_layers


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))
        self.backbone = Backbone()
        self.head = nn.Linear(4, 2)


class OwnClassifier(Classifier):
    """Has the last word."""

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        return self.backbone.get_layer_depth(param_name, "backbone.")


class Asking(Backbone):
    """Has to be told where it stands."""

    def get_layer_depth(self, param_name: str, prefix: str) -> tuple[int, int]:  # type: ignore[override]
        return super().get_layer_depth(param_name, prefix)


@pytest.mark.parametrize("classifier", [Classifier, OwnClassifier])
def test_a_models_own_count_of_its_layers_holds(classifier):
    found = groups(classifier())
    assert found["backbone.stem.weight"] == ("layer0", 1e-3 * 0.75**3)
    assert found["backbone.body.1.bias"] == ("layer2", 1e-3 * 0.75)
    assert found["backbone.norm.weight"] == found["head.weight"] == ("layer3", 1e-3)
    assert found["temperature"] == ("layer3", 1e-3)


@pytest.mark.parametrize("backbone", [Backbone, Asking])
def test_a_backbone_alone_counts_without_a_prefix(backbone):
    assert groups(backbone())["body.0.weight"] == ("layer1", 1e-3 * 0.75**2)


def test_two_backbones_each_count_their_own():
    found = groups(nn.ModuleDict({"image": Backbone(), "text": Backbone()}))
    assert found["image.stem.weight"] == found["text.stem.weight"] == ("layer0", 1e-3 * 0.75**3)


@pytest.mark.parametrize("depth", [None, 3, (1,), (2, 2), (-1, 4), (0.5, 4)])
def test_a_count_that_is_none_is_an_error_that_says_whose(monkeypatch, depth):
    monkeypatch.setattr(Backbone, "get_layer_depth", lambda self, name, prefix: depth)
    with pytest.raises(ConfigError, match=r"get_layer_depth\('temperature'\) of Backbone returned") as caught:
        plan(Classifier())
    assert caught.value.key == "model"


def test_a_count_that_raises_is_an_error_with_its_reason(monkeypatch):
    monkeypatch.setattr(Backbone, "get_layer_depth", lambda self, name, prefix: {}[name])
    with pytest.raises(ConfigError, match="KeyError: 'temperature'") as caught:
        plan(Classifier())
    assert caught.value.key == "optimizer.constructor"


def _wrapped(build) -> list[nn.Module]:
    """A model in every wrapper that keeps names and shapes, and some in one another."""
    mesh = init_device_mesh("cpu", (2,))
    checkpointed, sharded, root, compiled = build(), build(), build(), build()
    for model, wrap in (
        (checkpointed, checkpoint_wrapper),
        (sharded, lambda block: fully_shard(block, mesh=mesh)),
        (compiled, lambda block: torch.compile(block, backend="eager")),
    ):
        for i, block in enumerate(model.blocks):
            model.blocks[i] = wrap(block)
    in_place = build()
    in_place.compile(backend="eager")
    return [
        DistributedDataParallel(build()),
        checkpointed,
        DistributedDataParallel(checkpointed),
        fully_shard(sharded, mesh=mesh),
        fully_shard(root, mesh=mesh),
        torch.compile(build(), backend="eager"),
        torch.compile(compiled, backend="eager"),
        in_place,
    ]


class Counting(Net):
    """A Net that counts its layers itself, from the names that its author gave."""

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        return {"blocks.0.linear.weight": 1, "head.weight": 2}.get(param_name, 0), 3


def _equal_under_wrappers(build) -> list[bool]:
    reference = plan(build(), norm_decay_mult=0)
    return [plan(model, norm_decay_mult=0) == reference for model in _wrapped(build)]


@pytest.mark.parametrize("build", [Net, Counting])
def test_wrapping_moves_no_parameter_to_another_layer(build):
    assert run_distributed(_equal_under_wrappers, build) == [[True] * 8] * 2


SMALL = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
IMAGES = {"image_size": 32, "num_labels": 3}
ARCHITECTURES = {
    "ViTForImageClassification": ("ViTConfig", {**SMALL, **IMAGES, "patch_size": 16, "num_hidden_layers": 3}),
    "ConvNextForImageClassification": (
        "ConvNextConfig",
        {"hidden_sizes": [4, 8, 16, 32], "depths": [1, 2, 3, 1], "num_labels": 3},
    ),
    "SwinForImageClassification": (
        "SwinConfig",
        {**IMAGES, "embed_dim": 4, "depths": [2, 1, 3], "num_heads": [1, 2, 2], "window_size": 2},
    ),
    "BertForSequenceClassification": ("BertConfig", {**SMALL, "vocab_size": 16, "num_hidden_layers": 3}),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 8, "n_head": 2, "n_layer": 3, "vocab_size": 16}),
    "LlamaForCausalLM": ("LlamaConfig", {**SMALL, "vocab_size": 16, "num_hidden_layers": 3}),
}
LAYERS = {
    "ViTForImageClassification": {
        "vit.embeddings.cls_token": 0,
        "vit.embeddings.patch_embeddings.projection.weight": 0,
        **{f"vit.layers.{i}.mlp.fc1.weight": i + 1 for i in range(3)},
        "vit.layernorm.weight": 4,
        "classifier.weight": 4,
    },
    "ConvNextForImageClassification": {
        "convnext.embeddings.patch_embeddings.weight": 0,
        "convnext.embeddings.layernorm.weight": 0,
        "convnext.encoder.stages.0.layers.0.dwconv.weight": 1,
        "convnext.encoder.stages.1.downsampling_layer.1.weight": 1,
        "convnext.encoder.stages.1.layers.0.layer_scale_parameter": 2,
        "convnext.encoder.stages.1.layers.1.dwconv.weight": 3,
        "convnext.encoder.stages.2.downsampling_layer.0.bias": 3,
        **{f"convnext.encoder.stages.2.layers.{i}.pwconv2.weight": i + 4 for i in range(3)},
        "convnext.encoder.stages.3.layers.0.dwconv.weight": 7,
        "convnext.layernorm.weight": 8,
        "classifier.weight": 8,
    },
    "SwinForImageClassification": {
        "swin.embeddings.patch_embeddings.projection.weight": 0,
        "swin.encoder.layers.0.blocks.0.mlp.fc1.weight": 1,
        "swin.encoder.layers.0.blocks.1.mlp.fc1.weight": 2,
        "swin.encoder.layers.0.downsample.reduction.weight": 2,
        "swin.encoder.layers.1.blocks.0.mlp.fc1.weight": 3,
        "swin.encoder.layers.1.downsample.norm.weight": 3,
        **{f"swin.encoder.layers.2.blocks.{i}.mlp.fc1.weight": i + 4 for i in range(3)},
        "swin.layernorm.weight": 7,
        "classifier.weight": 7,
    },
    "BertForSequenceClassification": {
        "bert.embeddings.word_embeddings.weight": 0,
        "bert.embeddings.LayerNorm.weight": 0,
        **{f"bert.encoder.layer.{i}.attention.self.query.weight": i + 1 for i in range(3)},
        "bert.pooler.dense.weight": 4,
        "classifier.weight": 4,
    },
    "GPT2LMHeadModel": {
        "transformer.wte.weight": 0,  # the head is tied to it
        "transformer.wpe.weight": 0,
        **{f"transformer.h.{i}.attn.c_attn.weight": i + 1 for i in range(3)},
        "transformer.ln_f.weight": 4,
    },
    "LlamaForCausalLM": {
        "model.embed_tokens.weight": 0,
        **{f"model.layers.{i}.self_attn.q_proj.weight": i + 1 for i in range(3)},
        "model.norm.weight": 4,
        "lm_head.weight": 4,
    },
}
LAST = {name: max(layers.values()) for name, layers in LAYERS.items()}
GROUPS = {  # layers × (default, norm, bias), less what the first and the last do not have
    "ViTForImageClassification": 5 * 3 - 1,
    "ConvNextForImageClassification": 9 * 3,
    "SwinForImageClassification": 8 * 3,
    "BertForSequenceClassification": 5 * 3 - 2,
    "GPT2LMHeadModel": 5 * 3 - 4,
    "LlamaForCausalLM": 5 * 2 - 1,
}


def architecture(name: str, device: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config, arguments = ARCHITECTURES[name]
    with torch.device(device):
        model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**arguments))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_of_real_architectures(name, device):
    found = plan(
        architecture(name, device), rate=0.65, norm_decay_mult=0, bias_decay_mult=0, bypass_duplicate=True
    )
    of = {fqn: group for group in found.groups for fqn in group.param_names}
    for fqn, layer in LAYERS[name].items():
        assert of[fqn].name.partition(".")[0] == f"layer{layer}", fqn
        assert of[fqn].options["lr"] == 1e-3 * 0.65 ** (LAST[name] - layer), fqn
    assert len(found.groups) == GROUPS[name]
