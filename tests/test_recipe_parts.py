"""What the recipes in configs/ name: datasets (but for pictures), models and a collate function."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from distopt.data import Digits, LabelledText, TokenFile, causal_lm
from distopt.errors import ConfigError
from distopt.models import ConvNet, ResNet50


def words(text, truncation, max_length):
    """A tokenizer: each word is its length."""
    assert truncation
    ids = [len(word) for word in text.split()][:max_length]
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


@pytest.mark.slow  # scikit-learn imports much
def test_digits_are_split_four_to_one_with_every_class_in_both():
    pytest.importorskip("sklearn")
    train, val = Digits("train"), Digits("val")

    assert (len(train), len(val)) == (1437, 360)
    assert val.labels.bincount().min() >= 35
    assert {image.numpy().tobytes() for image in train.images}.isdisjoint(
        image.numpy().tobytes() for image in val.images
    )


@pytest.mark.slow
def test_a_digit_is_a_picture_from_0_to_1_and_its_number():
    pytest.importorskip("sklearn")
    digits = Digits("val")
    image, label = digits[0]

    assert (image.shape, image.dtype, label.dtype) == ((1, 8, 8), torch.float32, torch.int64)
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    assert label == 0


def test_an_unknown_split_of_the_digits_is_an_error_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown split") as caught:
        Digits("vall")

    assert (caught.value.key, caught.value.suggestion) == ("split", "val")


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    with pytest.raises(ConfigError, match="needs scikit-learn") as caught:
        Digits()

    assert caught.value.allowed == "pip install 'distopt[recipes]'"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'text,label\n"good, even great",1\nbad,0\n'),
        ("rows.tsv", "label\ttext\n1\tgood, even great\n0\tbad\n"),
        ("rows.jsonl", '{"text": "good, even great", "label": 1}\n{"text": "bad", "label": 0}\n'),
    ],
)
def test_labelled_texts_are_tokenized_and_cut(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    dataset = LabelledText(str(path), words, max_length=2)

    assert list(dataset) == [
        {"input_ids": [5, 4], "attention_mask": [1, 1], "labels": 1},
        {"input_ids": [3], "attention_mask": [1], "labels": 0},
    ]


def test_a_quote_in_a_tsv_file_is_only_a_quote(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\n"quoted, never closed\t1\nplain\t0\n')

    assert LabelledText(str(path), words).rows == [('"quoted, never closed', 1), ("plain", 0)]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.csv", "sentence,label\ngood,1\n", r"rows\.csv:2 has no text"),
        ("rows.csv", "text,label\ngood,1\nbad\n", r"rows\.csv:3 has no label"),
        ("rows.csv", "text,label\ngood,positive\n", r"the label in .*rows\.csv:2 is no class"),
        ("rows.jsonl", '{"text": "good", "label": 0.7}\n', r"the label in .*rows\.jsonl:1 is no class"),
        ("rows.jsonl", '{"text": "good", "label": 1}\n{"text"\n', r"rows\.jsonl:2 is no JSON"),
        ("rows.parquet", "", "unknown kind of file"),
        ("rows.csv", None, "there is no such file"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_that_says_where(tmp_path, name, content, problem):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigError, match=problem) as caught:
        LabelledText(str(path), words)

    assert caught.value.key == "path"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_tokens_come_in_windows_of_int64_without_the_incomplete_last(tmp_path, dtype):
    path = tmp_path / "tokens.npy"
    np.save(path, np.arange(11, dtype=dtype))
    dataset = TokenFile(str(path), context=4)

    assert dataset.tokens_per_sample == 4
    assert [dataset[i].tolist() for i in range(len(dataset))] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert dataset[0].dtype == torch.int64


def test_a_token_file_is_small_for_a_worker_however_long_it_is(tmp_path):
    path = tmp_path / "tokens.npy"
    np.save(path, np.zeros(100_000, dtype=np.uint16))

    assert len(pickle.dumps(TokenFile(str(path), context=4))) < 1000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (np.zeros((4, 4), dtype=np.int64), "holds no tokens"),
        (np.zeros(16), "holds no tokens"),
        (np.array([{}]), "cannot be read as a .npy file"),
        (np.arange(3), "longer than the whole text"),
        (None, "cannot be read as a .npy file: .*No such file"),
    ],
)
def test_a_file_of_something_else_than_tokens_is_an_error(tmp_path, content, problem):
    path = tmp_path / "tokens.npy"
    if content is not None:
        np.save(path, content)

    with pytest.raises(ConfigError, match=problem):
        TokenFile(str(path), context=4)


def test_causal_lm_makes_ids_and_labels_of_windows():
    batch = causal_lm([torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([3, 4], dtype=torch.uint8)])

    assert list(batch) == ["input_ids", "labels"]
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[1, 2], [3, 4]]
    assert batch["input_ids"].dtype == torch.int64


def test_the_conv_net_returns_a_score_for_each_class():
    assert ConvNet(width=4, depth=2, classes=7)(torch.rand(3, 1, 8, 8)).shape == (3, 7)


def test_the_conv_net_has_norms_depthwise_filters_and_biases_for_rules_to_find():
    model = ConvNet(width=4, depth=2)

    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 3
    assert sum(getattr(module, "groups", 1) == 4 for module in model.modules()) == 2
    assert sum(name.endswith(".bias") for name, _ in model.named_parameters()) == 3 + 2 * 2 + 2


@pytest.mark.slow  # torch imports much for its first tensor on meta
def test_resnet_50_has_the_parameters_of_the_paper_by_torchvisions_names():
    with torch.device("meta"):
        model = ResNet50()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}

    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.downsample.1.running_var"] == (256,)
    assert shapes["layer2.3.bn3.num_batches_tracked"] == ()
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert "layer4.1.downsample.0.weight" not in shapes
    assert shapes["fc.weight"] == (1000, 2048)


def test_resnet_50_takes_torchvisions_checkpoints():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        ours, theirs = (model().state_dict() for model in (ResNet50, torchvision.models.resnet50))

    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


def test_a_small_resnet_returns_a_score_for_each_class():
    assert ResNet50(layers=[1, 2, 1, 1], width=4, classes=7)(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_each_block_of_an_untrained_resnet_is_the_identity():
    block = ResNet50(layers=[2, 1, 1, 1], width=4).layer1[1]
    x = torch.rand(2, 16, 8, 8)

    assert torch.equal(block(x), x)


@pytest.mark.slow  # a process that imports torch
def test_the_packages_of_the_recipes_are_imported_only_where_used():
    program = "import sys, distopt.data, distopt.models; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert not {"sklearn", "transformers", "PIL"} & set(loaded.stdout.split())
