"""ByteGPT: a causal language model that returns its own loss."""

from math import log

import pytest
import torch
from torch import nn

from distopt.errors import ConfigError
from distopt.models import ByteGPT


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def windows(batch=4, context=16):
    return torch.randint(256, (batch, context + 1), dtype=torch.uint8)


def small(**options):
    return ByteGPT(**{"context": 16, "width": 32, "depth": 2, "heads": 2, **options})


def test_an_untrained_model_guesses_evenly():
    loss = ByteGPT()(windows(8, 64))["loss"]

    assert loss.ndim == 0
    assert loss.item() == pytest.approx(log(256), abs=0.25)


@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_gets_a_gradient(tie):
    model = small(tie=tie)
    model(windows())["loss"].backward()

    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_tied_head_is_the_embedding():
    model = small()

    assert model.head.weight is model.embedding.weight
    assert "head.weight" not in dict(model.named_parameters())


def test_an_untied_head_has_its_own_weight():
    model = small(tie=False)

    assert model.head.weight is not model.embedding.weight


def test_a_later_byte_does_not_change_earlier_predictions():
    model = small()
    logits = []
    model.head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    window = windows(1)
    changed = window.clone()
    changed[0, 9] += 1

    model(window)
    model(changed)

    assert torch.equal(logits[0][:, :9], logits[1][:, :9])
    assert not torch.allclose(logits[0][:, 9:], logits[1][:, 9:])


def test_the_loss_is_the_mean_over_batch_and_positions_of_the_next_byte():
    model = small()
    logits = []
    model.head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    window = windows(2)

    loss = model(window)["loss"]

    log_probability = logits[0].log_softmax(dim=-1)
    of_next = [log_probability[b, t, window[b, t + 1].item()] for b in range(2) for t in range(16)]
    assert loss.item() == pytest.approx(-torch.stack(of_next).mean().item(), rel=1e-5)


def test_bytes_and_int64_give_the_same_loss():
    model, window = small(), windows()

    assert torch.equal(model(window)["loss"], model(window.long())["loss"])


def test_a_shorter_window_than_the_context_is_fine():
    assert small()(windows(2, 5))["loss"].isfinite()


def test_a_window_longer_than_the_context_is_an_error():
    with pytest.raises(ConfigError, match="at least 17") as caught:
        small()(windows(2, 17))

    assert caught.value.key == "model.context"


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(ConfigError, match="width, 32") as caught:
        small(heads=3)

    assert caught.value.key == "heads"


@pytest.mark.slow  # torch imports much for its first tensor on meta
def test_it_can_be_built_without_memory():
    with torch.device("meta"):
        model = small()

    assert all(p.is_meta for p in model.parameters())
    assert model.head.weight is model.embedding.weight


def test_depth_leaves_the_size_of_the_residual_stream_alone():
    def size(depth):
        model = small(depth=depth, width=64)
        sizes = []
        model.norm.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].std()))
        model(windows())
        return sizes[0].item()

    assert size(16) == pytest.approx(size(2), rel=0.3)


def test_there_are_norms_and_biases_for_rules_to_find():
    model = small()

    assert sum(isinstance(module, nn.LayerNorm) for module in model.modules()) == 5
    assert sum(name.endswith(".bias") for name, _ in model.named_parameters()) == 2 * 6 + 1
