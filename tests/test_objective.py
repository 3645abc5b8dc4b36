"""One batch in, one loss out: what a model may take and return."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distopt import ConfigError
from distopt.objective import Objective, scalars


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class Net(nn.Module):
    """Returns what it was made to return, as a function of its logits."""

    def __init__(self, returns: Any = lambda logits: logits) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.returns = returns

    def forward(self, image: Tensor, scale: float = 1.0) -> Any:
        return self.returns(self.linear(image) * scale)


IMAGES, LABELS = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
Named = namedtuple("Named", "loss extra")
cross_entropy = nn.functional.cross_entropy


@pytest.mark.parametrize("batch", [IMAGES, (IMAGES,), [IMAGES, 1.0], {"image": IMAGES}], ids=repr)
def test_a_tensor_is_an_argument_a_tuple_several_and_a_mapping_keywords(batch):
    net = Net(torch.Tensor.sum)
    assert Objective(net)(batch).loss == net.linear(IMAGES).sum()


@pytest.mark.parametrize(
    "returns",
    [
        lambda logits: logits.sum(),
        lambda logits: {"loss": logits.sum()},
        lambda logits: Output(logits, logits.sum()),
        lambda logits: Named(logits.sum(), 1),
    ],
    ids=["tensor", "mapping", "object", "named tuple"],
)
def test_a_loss_is_returned_bare_or_in_a_mapping_or_an_object(returns):
    net = Net(returns)
    assert Objective(net)(IMAGES).loss == net.linear(IMAGES).sum()


@pytest.mark.parametrize(
    "batch",
    [(IMAGES, LABELS), {"image": IMAGES, "label": LABELS}, {"target": LABELS, "image": IMAGES}],
    ids=repr,
)
@pytest.mark.parametrize("returns", [lambda logits: logits, Output, lambda logits: {"logits": logits}])
def test_a_configured_loss_takes_the_prediction_and_the_target_and_the_model_the_rest(batch, returns):
    net = Net(returns)
    outcome = Objective(net, cross_entropy)(batch)
    assert outcome.loss == cross_entropy(net.linear(IMAGES), LABELS)
    assert outcome.target is LABELS


def test_a_model_that_returns_its_loss_gets_the_target_too():
    class WithLabels(Net):
        def forward(self, image, labels):
            return {"loss": cross_entropy(self.linear(image), labels), "logits": self.linear(image)}

    outcome = Objective(WithLabels())({"image": IMAGES, "labels": LABELS})
    assert outcome.target is LABELS
    assert outcome.prediction.shape == (4, 3)


def test_other_numbers_that_are_returned_are_scalars_and_nothing_else_is():
    returned = {
        "accuracy": torch.tensor(0.5),
        "beta": 2,
        "num_items": 7,
        "logits": IMAGES,
        "on": True,
        "to": None,
    }
    outcome = Objective(Net(lambda logits: {"loss": logits.sum(), **returned}))(IMAGES)
    assert scalars(outcome) == {"loss": outcome.loss, "accuracy": 0.5, "beta": 2}
    assert outcome.items == 7


def test_a_configured_loss_may_count_items_and_return_scalars_too():
    loss = lambda prediction, target: {"loss": prediction.sum(), "num_items": 3, "hits": 0.25}  # noqa: E731
    outcome = Objective(Net(), loss)((IMAGES, LABELS))
    assert (outcome.items, scalars(outcome)["hits"]) == (3, 0.25)


@pytest.mark.parametrize(
    ("returns", "given"),
    [
        (lambda logits: logits, "Tensor of shape (4, 3)"),
        (lambda logits: {"logits": logits}, "dict with logits"),
        (lambda logits: Output(logits), "Output with logits, loss; its loss is None"),
        (lambda logits: {"loss": logits.sum(1)}, "dict with loss; its loss is a Tensor of shape (4,)"),
        (lambda logits: None, "NoneType"),
        (lambda logits: logits.sum().item(), "float"),
    ],
    ids=["output", "no loss", "loss is None", "loss per sample", "nothing", "number"],
)
def test_what_holds_no_scalar_loss_is_said_with_the_model_and_the_way_out(returns, given):
    with pytest.raises(ConfigError) as caught:
        Objective(Net(returns))(IMAGES)
    assert caught.value.problem == "Net.forward returned no scalar loss"
    assert caught.value.given == given
    assert "loss: {type: …}" in str(caught.value.allowed)


def test_a_configured_loss_that_returns_none_is_named():
    def per_sample(output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target, reduction="none")

    with pytest.raises(ConfigError, match=r"^loss: .*per_sample returned no scalar loss"):
        Objective(Net(), per_sample)((IMAGES, LABELS))


def test_a_loss_without_a_gradient_is_refused_in_training_and_not_in_evaluation():
    objective = Objective(Net(lambda logits: logits.sum().detach()))
    with pytest.raises(ConfigError, match=r"^model: Net.forward returned a loss without a gradient"):
        objective(IMAGES)
    with torch.no_grad():
        assert objective(IMAGES).loss.ndim == 0


def test_a_complex_loss_is_refused():
    with pytest.raises(ConfigError, match=r"^model: Net.forward returned a complex loss"):
        Objective(Net(lambda logits: logits.sum() * 1j))(IMAGES)


@pytest.mark.parametrize(
    ("batch", "given"),
    [
        ({"pixels": IMAGES}, "keys pixels"),
        ({"image": IMAGES, "index": 1}, "keys image, index"),
        ((IMAGES, 1.0, 2.0), "3 values"),
    ],
)
def test_a_batch_that_forward_does_not_take_names_both(batch, given):
    with pytest.raises(ConfigError, match=r"^model: Net.forward does not take what a batch has") as caught:
        Objective(Net())(batch)
    assert caught.value.given == given
    assert str(caught.value.allowed).startswith("image: ")


@pytest.mark.parametrize("batch", [IMAGES, (IMAGES,), {"image": IMAGES}], ids=["tensor", "tuple", "mapping"])
def test_a_loss_without_a_target_in_the_batch_is_refused(batch):
    with pytest.raises(ConfigError, match=r"^loss: .*the batch has no target"):
        Objective(Net(), cross_entropy)(batch)


@pytest.mark.parametrize("items", [torch.ones(4), "4", [4]], ids=repr)
def test_a_num_items_that_is_no_single_number_is_refused(items):
    returned = {"num_items": items}
    problem = "returned a num_items that is no single number"
    with pytest.raises(ConfigError, match=rf"^model: Net.forward {problem}"):
        Objective(Net(lambda logits: {"loss": logits.sum()} | returned))(IMAGES)
    with pytest.raises(ConfigError, match=rf"^loss: .* {problem}"):
        Objective(Net(), lambda output, target: {"loss": output.sum()} | returned)((IMAGES, LABELS))


@dataclass(slots=True)
class Slots:
    logits: Tensor
    num_items: int

    @property
    def loss(self) -> Tensor:
        return self.logits.sum()


def test_slots_and_properties_of_what_is_returned_are_read():
    outcome = Objective(Net(lambda logits: Slots(logits, 3)))(IMAGES)
    assert outcome.loss == outcome.prediction.sum()
    assert outcome.items == 3


def test_only_what_has_a_text_for_a_name_is_a_field():
    outcome = Objective(Net(lambda logits: {"loss": logits.sum(), "a": 1, 0: 2}))(IMAGES)
    assert sorted(scalars(outcome)) == ["a", "loss"]
