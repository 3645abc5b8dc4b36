"""A model made on the meta device comes out as one made on the CPU, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from distopt import ConfigError, names
from distopt.models import ByteGPT
from distopt.parallel import materialize


def on_meta(make):
    with torch.device("meta"):
        return make()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(3)


class Masked(nn.Module):
    """Computes a buffer in its constructor, and nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("scale", torch.arange(3.0))


class Own(nn.Module):
    """Initialises itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2))

    def init_weights(self) -> None:
        nn.init.constant_(self.weight, 2.0)


class Pretrained(nn.Module):
    """Initialises all that it has, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        with torch.device("meta"):
            self.head = nn.Linear(2, 2)

    def init_weights(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ByModule(nn.Module):
    """Applies `_init_weights` to its modules in the constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 3.0)


class ByAttribute(nn.Sequential):
    """Knows what to initialise by an attribute, which a wrapper has too."""

    def _init_weights(self, module: nn.Module) -> None:
        if hasattr(module, "normalized_shape"):
            nn.init.normal_(module.weight)


class Failing(Own):
    def init_weights(self, std: float) -> None:  # type: ignore[override]
        pass


def test_modules_get_their_initial_values():
    model = on_meta(Tied)
    materialize(model)
    assert all(not tensor.is_meta and tensor.isfinite().all() for tensor in model.state_dict().values())
    assert model.norm.running_var.tolist() == [1.0, 1.0, 1.0]
    assert model.embedding.weight.std() > 0


def test_attention_which_hides_its_initialisation_gets_initial_values():
    model = on_meta(lambda: nn.MultiheadAttention(4, 2))
    materialize(model)
    assert model.in_proj_weight.std() > 0
    assert torch.equal(model.in_proj_bias, torch.zeros(12))
    assert torch.equal(model.out_proj.bias, torch.zeros(4))  # set by the parent, after the child itself


def test_ties_stay():
    model = on_meta(Tied)
    materialize(model)
    assert model.head.weight is model.embedding.weight
    assert names.ties(names.visits(model)) == [("embedding.weight", "head.weight")]


def test_requires_grad_stays():
    model = on_meta(Tied)
    model.norm.requires_grad_(False)
    materialize(model)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "norm.weight",
        "norm.bias",
    ]


def test_the_same_seed_gives_the_same_values():
    first, second = on_meta(Tied), on_meta(Tied)
    for model in (first, second):
        torch.manual_seed(3)
        materialize(model)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_a_models_own_initialisation_is_used():
    model = on_meta(Own)
    materialize(model)
    assert model.weight.tolist() == [2.0, 2.0]


def test_the_shipped_models_can_be_made_on_the_meta_device():
    model = on_meta(lambda: ByteGPT(context=8, width=16, depth=1, heads=2))
    materialize(model)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_what_nothing_initialises_is_an_error():
    with pytest.raises(ConfigError, match="nothing initialises scale") as error:
        materialize(on_meta(Masked))
    assert error.value.key == "model"


def test_a_real_model_is_left_alone():
    model = Masked()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    materialize(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_modules_that_are_real_already_keep_their_values():
    model = nn.Sequential(nn.Linear(2, 2), on_meta(lambda: nn.Linear(2, 2)))
    before = model[0].weight.clone()
    materialize(model)
    assert torch.equal(model[0].weight, before)
    assert not model[1].weight.is_meta


def test_real_parameters_and_buffers_beside_meta_ones_keep_their_values():
    model = on_meta(lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    weight, mean = torch.full((2, 2), 7.0), torch.full((2,), 5.0)
    model.load_state_dict({"0.weight": weight, "1.running_mean": mean}, assign=True, strict=False)
    materialize(model)
    assert torch.equal(model[0].weight, torch.full((2, 2), 7.0))
    assert torch.equal(model[1].running_mean, torch.full((2,), 5.0))
    assert all(not tensor.is_meta and tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_recurrent_module_computes_with_what_it_was_given():
    model = on_meta(lambda: nn.LSTM(2, 3))
    materialize(model)
    assert all(a is b for a, b in zip(model.parameters(), model._flat_weights, strict=True))


def test_what_is_real_keeps_its_values_also_from_the_models_own_initialisation():
    model = Pretrained()
    before = model.body.weight.clone()
    materialize(model)
    assert torch.equal(model.body.weight, before)
    assert model.head.weight.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_an_initialisation_by_module_is_used():
    model = on_meta(ByModule)
    materialize(model)
    assert model.layer.weight.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_an_initialisation_by_module_does_not_come_to_wrappers():
    plain, wrapped = (
        on_meta(lambda: ByAttribute(nn.LayerNorm(3))),
        on_meta(lambda: ByAttribute(nn.LayerNorm(3))),
    )
    wrapped[0] = checkpoint_wrapper(wrapped[0])
    for model in (plain, wrapped):
        torch.manual_seed(3)
        materialize(model)
    assert torch.equal(plain[0].weight, wrapped[0].weight)


def test_an_initialisation_that_raises_is_an_error():
    with pytest.raises(ConfigError, match="its initialisation raised TypeError"):
        materialize(on_meta(Failing))


def test_unsigned_buffers_may_hold_zeros():
    model = on_meta(Own)
    model.register_buffer("flags", torch.empty(2, dtype=torch.uint8, device="meta"))
    model.init_weights = lambda: [tensor.zero_() for tensor in model.state_dict().values()]
    materialize(model)
    assert model.flags.tolist() == [0, 0]
