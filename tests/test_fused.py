"""A fused Adam that we step is, bit by bit, one that torch steps: whatever happens to it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from distopt.fused import FusedStep, is_fused

Happening = Callable[[Optimizer], object]
"""Something done to an optimizer between two steps."""


def optimizer(
    cls: type[Optimizer] = AdamW, dtypes: tuple[torch.dtype, ...] = (), **options: Any
) -> Optimizer:
    """Three groups that differ in all that a group can."""
    generator = torch.Generator().manual_seed(0)
    kinds = iter(dtypes or [torch.float32] * 5)
    params = [nn.Parameter(torch.randn(3, size, generator=generator).to(next(kinds))) for size in range(1, 6)]
    groups = [
        {"params": params[:2], "lr": 0.1},
        {"params": params[2:3], "lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3},
        {"params": params[3:], "lr": 0.02, "weight_decay": 0.3},
    ]
    return cls(groups, fused=True, **options)


def parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(
    step: Callable[..., None], optimizer: Optimizer, happening: Happening, **told: Any
) -> Iterator[Tensor]:
    """Six steps, with something between the third and the fourth; yields all there is at the end."""
    generator = torch.Generator().manual_seed(1)
    for i in range(6):
        if i == 3:
            happening(optimizer)
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        for p in parameters(optimizer):
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        if told.pop("one has none", False):
            parameters(optimizer)[3].grad = None
        step(**told)
    for p in parameters(optimizer):
        yield p.detach()
        yield from optimizer.state[p].values()


def as_torch(optimizer: Optimizer) -> Callable[..., None]:
    def step(unless: Tensor | None = None, divisor: Tensor | None = None) -> None:
        optimizer.grad_scale, optimizer.found_inf = divisor, None if unless is None else unless.float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf

    return step


def assert_same(theirs: Optimizer, happening: Happening = id, **told: Any) -> Optimizer:
    """Gives the one that we have stepped."""
    ours = deepcopy(theirs)
    assert is_fused(ours)
    expected = train(as_torch(theirs), theirs, happening, **told)
    for mine, value in zip(train(FusedStep(ours), ours, happening, **told), expected, strict=True):
        assert torch.equal(mine, value)
    return ours


@pytest.fixture
def torchs_steps(monkeypatch) -> list[Optimizer]:
    """The optimizer of each step that torch takes itself."""
    seen = []
    # What it calls after each.
    monkeypatch.setattr(Optimizer, "_optimizer_step_code", lambda self: seen.append(self))
    return seen


@pytest.mark.parametrize("cls", [Adam, AdamW])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.2}])
def test_it_is_torchs_step(cls, options):
    assert_same(optimizer(cls, **options))


def test_an_adam_whose_weight_decay_is_decoupled_is_stepped_as_such():
    assert_same(optimizer(Adam, weight_decay=0.2, decoupled_weight_decay=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_torchs_step_in_every_precision(dtype):
    assert_same(optimizer(dtypes=(dtype,) * 5))


def test_gradients_may_be_divided_by_a_number_in_fp64():
    theirs, ours = (optimizer(dtypes=(torch.float64,) * 5) for _ in range(2))
    expected = train(as_torch(theirs), theirs, id, divisor=torch.tensor(3.0))  # torch takes no other
    found = train(FusedStep(ours), ours, id, divisor=torch.tensor(3.0, dtype=torch.float64))
    for mine, value in zip(found, expected, strict=True):
        assert torch.equal(mine, value)


def test_gradients_are_divided_as_by_torch():
    assert_same(optimizer(), divisor=torch.tensor(3.0))


@pytest.mark.parametrize("unless", [True, False])
def test_a_step_is_left_out_as_by_torch(unless):
    assert_same(optimizer(), unless=torch.tensor(unless))


def test_only_the_first_step_is_torchs_own(torchs_steps):
    ours = optimizer()
    list(train(FusedStep(ours), ours, id))
    assert torchs_steps == [ours]


def load(optimizer: Optimizer) -> None:
    """A state that was saved, and then gone on from."""
    saved = deepcopy(optimizer.state_dict())
    for _ in range(2):
        optimizer.step()
    optimizer.load_state_dict(saved)


def replace(optimizer: Optimizer) -> None:
    state = optimizer.state[parameters(optimizer)[2]]
    state["exp_avg"] = state["exp_avg"] * 2


def change_betas(optimizer: Optimizer) -> None:
    optimizer.param_groups[1]["betas"] = (0.1, 0.99)


def add_a_group(optimizer: Optimizer) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(7))], "lr": 0.5})


def take_a_parameter_away(optimizer: Optimizer) -> None:
    del optimizer.param_groups[0]["params"][0]


def move_a_parameter(optimizer: Optimizer) -> None:
    """Into the next group, so that their order stays."""
    before, after, _ = optimizer.param_groups
    after["params"].insert(0, before["params"].pop())


@pytest.mark.parametrize(
    ("happening", "by_torch"),
    [
        (load, 3),
        (replace, 1),
        (change_betas, 1),
        (add_a_group, 2),
        (take_a_parameter_away, 1),
        (move_a_parameter, 1),
    ],
)
def test_what_happens_to_the_optimizer_is_noticed_and_the_lists_are_made_anew(
    torchs_steps, happening, by_torch
):
    ours = assert_same(optimizer(), happening)
    assert torchs_steps.count(ours) == by_torch


def test_a_parameter_without_a_gradient_is_left():
    assert_same(optimizer(), **{"one has none": True})


def test_groups_of_several_types_are_torchs_to_step():
    assert_same(optimizer(dtypes=(torch.float32, torch.float64, torch.float64, torch.float32, torch.float64)))


def test_an_lr_that_is_a_tensor_is_torchs_to_step():
    def to_tensor(optimizer: Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1)

    assert_same(optimizer(), to_tensor)


def test_hooks_are_called():
    ours, seen = optimizer(), []
    list(train(FusedStep(ours), ours, lambda it: it.register_step_post_hook(lambda *_: seen.append(1))))
    assert len(seen) == 3


def test_a_step_that_somebody_has_replaced_is_called():
    ours = optimizer()
    list(train(FusedStep(ours), ours, lambda it: torch.optim.lr_scheduler.ConstantLR(it)))
    assert ours._opt_called


def test_a_profile_shows_the_optimizers_name():
    ours = optimizer()
    with torch.profiler.profile() as profile:
        list(train(FusedStep(ours), ours, id))
    assert "Optimizer.step#AdamW.step" in {event.key for event in profile.key_averages()}
