"""The recipes in configs/, each trained for two steps on two ranks, made small by overrides alone."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kit import run_distributed
from tests.runs import losses, rows, train

CONFIGS = Path(__file__).parents[1] / "configs"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]
TINY_LLAMA = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TINY_GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 64}

pytestmark = pytest.mark.slow
strategies = pytest.mark.parametrize("strategy", ["ddp", "fsdp"])


def two_steps(name: str, run: Path, *overrides: str) -> Path:
    """Trains configs/`name` on two ranks; the run directory."""
    short = ["max_epochs=null", "max_steps=2", "log.every=1", "eval.every=2", "data.num_workers=0"]
    run_distributed(train, CONFIGS / name, f"work_dir={run}", *short, *overrides, timeout=110)
    return run


def metrics(run: Path) -> dict[str, float]:
    return rows(run, "eval")[-1]["eval"]


def groups(run: Path) -> dict[str, set[str]]:
    """Group → its parameters."""
    plan = json.loads((run / "plan.json").read_text())
    return {group["name"]: {p["fqn"] for p in group["params"]} for group in plan["groups"]}


def write_pictures(root: Path) -> None:
    """Noise, in six classes, for training and validation."""
    noise = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in "abcdef":
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = noise.integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")


@strategies
def test_digits(tmp_path, strategy):
    pytest.importorskip("sklearn")
    pytest.importorskip("torchmetrics")

    run = two_steps("digits.yaml", tmp_path / "run", f"strategy={strategy}")

    assert losses(run) == pytest.approx([log(10)] * 2, abs=0.3)
    assert 0 <= metrics(run)["accuracy"] <= 1
    assert list(groups(run)) == ["dwconv", "bias", "norm", "default"]


@strategies
def test_resnet50_on_a_folder_of_pictures(tmp_path, monkeypatch, strategy):
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("DATA", str(tmp_path))
    write_pictures(tmp_path / "imagenet")

    run = two_steps(
        "resnet50_imagenet.yaml",
        tmp_path / "run",
        f"strategy={strategy}",
        "model.layers=[1, 2, 1, 1]",
        "model.width=4",
        "model.classes=6",
        "data.train.size=32",
        "data.val.size=32",
        "data.batch_size=8",
        "eval.metrics.top1.num_classes=6",
        "eval.metrics.top5.num_classes=6",
    )

    assert losses(run) == pytest.approx([log(6)] * 2, abs=1)
    assert metrics(run)["top1"] <= metrics(run)["top5"] <= 1
    assert {name: len(members) for name, members in groups(run).items()} == {
        "default": 1 + 3 * 5 + 4 + 1,  # the first convolution, three a block, the shortcuts, the last layer
        "norm": 2 * (1 + 3 * 5 + 4),
        "bias": 1,
    }


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A folder with a tiny pretrained BERT and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@strategies
def test_bert_fine_tuning(tmp_path, monkeypatch, bert, strategy):
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DATA", str(tmp_path))
    for name in ("train", "val"):
        texts = [f"{'a ' * (i % 5)}{('bad', 'good')[i % 2]} film,{i % 2}" for i in range(19)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *texts]))
    places = ("model", "data.train.tokenizer", "data.val.tokenizer", "data.collate.tokenizer")

    run = two_steps(
        "bert_finetune.yaml",
        tmp_path / "run",
        f"strategy={strategy}",
        *(f"{place}.pretrained_model_name_or_path={bert}" for place in places),
        "data.batch_size=8",
    )

    assert losses(run) == pytest.approx([log(2)] * 2, abs=0.2)
    assert 0 <= metrics(run)["accuracy"] <= 1
    of_groups = groups(run)
    assert of_groups["classifier"] == {"classifier.weight"}
    assert of_groups["classifier.bias"] == {"classifier.bias"}
    assert "bert.embeddings.word_embeddings.weight" in of_groups["embeddings"]
    assert "bert.embeddings.LayerNorm.weight" in of_groups["embeddings.norm"]
    assert "bert.encoder.layer.1.output.LayerNorm.weight" in of_groups["norm"]
    assert "bert.encoder.layer.0.attention.self.query.weight" in of_groups["default"]


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    """A folder with a tiny pretrained ViT."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
    )
    transformers.ViTModel(config).save_pretrained(folder)
    return folder


@strategies
def test_vit_fine_tuning(tmp_path, monkeypatch, vit, strategy):
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DATA", str(tmp_path))
    write_pictures(tmp_path)

    run = two_steps(
        "vit.yaml",
        tmp_path / "run",
        f"strategy={strategy}",
        f"model.pretrained_model_name_or_path={vit}",
        "model.num_labels=6",
        "data.train.size=32",
        "data.val.size=32",
        "data.batch_size=8",
        "eval.metrics.accuracy.num_classes=6",
    )

    assert losses(run) == pytest.approx([log(6)] * 2, abs=0.5)
    assert 0 <= metrics(run)["accuracy"] <= 1
    of_groups = groups(run)
    tokens = {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}
    assert of_groups["layer0.tokens"] == tokens
    assert of_groups["layer0"] == {"vit.embeddings.patch_embeddings.projection.weight"}
    assert "vit.layers.1.mlp.fc1.weight" in of_groups["layer2"]
    assert "vit.layers.1.layernorm_after.bias" in of_groups["layer2.flat"]
    assert of_groups["layer3"] == {"classifier.weight"}
    assert of_groups["layer3.flat"] == {"vit.layernorm.weight", "vit.layernorm.bias", "classifier.bias"}


def gpt2_in_small(name: str, folder: Path, strategy: str) -> Path:
    for part in ("train", "val"):
        np.save(folder / f"{part}.npy", np.arange(1000, dtype=np.uint16) % 50)
    run = two_steps(
        name,
        folder / "run",
        f"strategy={strategy}",
        *(f"model.config.{key}={value}" for key, value in TINY_GPT2.items()),
        "data.train.context=16",
        "data.val.context=16",
        "data.batch_size=8",
        "data.micro_batch_size=2",
    )
    assert losses(run) == pytest.approx([log(64)] * 2, abs=0.3)
    return run


@strategies
def test_gpt2(tmp_path, monkeypatch, strategy):
    pytest.importorskip("transformers")
    monkeypatch.setenv("DATA", str(tmp_path))
    of_groups = groups(gpt2_in_small("gpt2.yaml", tmp_path, strategy))
    assert set(of_groups) == {"default", "flat"}
    assert {"transformer.wte.weight", "transformer.h.1.attn.c_attn.weight"} <= of_groups["default"]
    assert {"transformer.ln_f.weight", "transformer.h.0.mlp.c_fc.bias"} <= of_groups["flat"]


@strategies
def test_gpt2_with_muon(tmp_path, monkeypatch, strategy):
    pytest.importorskip("transformers")
    monkeypatch.setenv("DATA", str(tmp_path))
    of_groups = groups(gpt2_in_small("gpt2_muon.yaml", tmp_path, strategy))
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert of_groups["muon"] == {f"transformer.h.{i}.{layer}.weight" for i in (0, 1) for layer in layers}
    assert of_groups["default"] == {"transformer.wte.weight", "transformer.wpe.weight"}


@strategies
def test_gpt2_with_a_level_learning_rate(tmp_path, monkeypatch, strategy):
    pytest.importorskip("transformers")
    monkeypatch.setenv("DATA", str(tmp_path))
    run = gpt2_in_small("gpt2_wsd.yaml", tmp_path, strategy)
    assert [row["lr"]["default"] for row in rows(run)] == pytest.approx([3e-7, 6e-7])


@pytest.mark.parametrize("name", ["llama_8b.yaml", "llama_8b_hsdp.yaml"])
def test_llama(tmp_path, monkeypatch, name):
    pytest.importorskip("transformers")
    monkeypatch.setenv("DATA", str(tmp_path))
    for part in ("train", "val"):
        np.save(tmp_path / f"{part}.npy", np.arange(1000, dtype=np.uint32) % 50)

    run = two_steps(
        name,
        tmp_path / "run",
        *(f"model.config.{key}={value}" for key, value in TINY_LLAMA.items()),
        *(["strategy.shard_size=2"] if "hsdp" in name else []),
        "data.train.context=16",
        "data.val.context=16",
        "data.batch_size=8",
        "compile={backend: aot_eager}",
    )

    assert losses(run) == pytest.approx([log(64)] * 2, abs=0.3)
    of_groups = groups(run)
    assert set(of_groups) == {"default", "norm"}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= of_groups["default"]
    assert {"model.norm.weight", "model.layers.1.input_layernorm.weight"} <= of_groups["norm"]
