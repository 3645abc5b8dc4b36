"""The step on local shards: bit by bit that on DTensors, and nobody outside of it sees a difference."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distopt.optim.local_shards import step_local_shards
from tests.covering import left_to_system
from tests.kit import run_distributed
from tests.shards import (
    ELEMENT_WISE,
    FUSED,
    LAYOUTS,
    NO_DTENSORS,
    Shards,
    adamw,
    backward,
    differing,
    dtensors,
    everything,
    full,
    make,
    shows_dtensors,
    train,
)


def differing_after_20_steps(name: str, strategy: dict) -> dict[str, list[str]]:
    """Implementation → which of parameters and state are not those of the same without local shards."""
    found = {}
    for implementation in ("fused", "foreach", "loop"):
        options = {"lr": 0.05, **ELEMENT_WISE[name], "foreach": implementation == "foreach"}
        if implementation == "fused":
            if name not in FUSED:
                continue
            options = {"lr": 0.05, **ELEMENT_WISE[name], "fused": True}
        cls = getattr(torch.optim, name)
        model, twin = make(strategy), make(strategy)
        optimizer = cls(model.parameters(), **options)
        step_local_shards(optimizer)
        if {name, f"{name} {implementation}"} & {*NO_DTENSORS}:
            shards = Shards(model)
            oracle = cls(shards.shards.values(), **options)
            for step in range(20):
                backward(model, step)
                shards.step(oracle)
                optimizer.step()
                optimizer.zero_grad()
            found[implementation] = shards.differing(oracle, optimizer)
        else:
            oracle = cls(twin.parameters(), **options)
            train(model, optimizer, 20)
            train(twin, oracle, 20)
            found[implementation] = differing(everything(model, optimizer), everything(twin, oracle))
    return found


@pytest.mark.parametrize(
    ("name", "layout"),
    left_to_system(
        product(ELEMENT_WISE, LAYOUTS),
        but=[*product(ELEMENT_WISE, ["fsdp 4"]), ("AdamW", "hsdp 2x2"), ("SGD", "hsdp 2x2")],
    ),
)
def test_parameters_and_state_are_bitwise_those_of_the_step_on_dtensors(name, layout):
    world, strategy = LAYOUTS[layout]
    for found in run_distributed(differing_after_20_steps, name, strategy, world=world):
        assert found == {implementation: [] for implementation in found}
        assert len(found) == (3 if name in FUSED else 2)


def seen_after_steps() -> bool:
    model = make()
    optimizer = adamw(model)
    train(model, optimizer)
    return shows_dtensors(model, optimizer) and len(optimizer.state) == 6


def test_groups_and_state_have_dtensors_after_steps():
    assert run_distributed(seen_after_steps, world=4) == [True] * 4


def types_in_a_step() -> set[type]:
    model = make()
    optimizer = adamw(model, foreach=True, fused=None)
    seen = set()
    original = torch._foreach_lerp_

    def look(tensors: list[Tensor], *args: Any) -> None:
        seen.update(map(type, tensors))
        original(tensors, *args)

    torch._foreach_lerp_ = look
    try:
        train(model, optimizer)
    finally:
        torch._foreach_lerp_ = original
    return seen


def test_what_is_stepped_is_no_dtensor():
    assert run_distributed(types_in_a_step) == [{Tensor}] * 2


def memory_of_state() -> bool:
    model = make()
    optimizer = adamw(model)
    train(model, optimizer)
    pointers = [value.to_local().data_ptr() for value in dtensors(optimizer)]
    before = [full(value).clone() for value in dtensors(optimizer)]
    train(model, optimizer, 1)
    same = pointers == [value.to_local().data_ptr() for value in dtensors(optimizer)]
    return same and not any(torch.equal(a, full(b)) for a, b in zip(before, dtensors(optimizer), strict=True))


def test_a_step_moves_the_state_where_it_is():
    assert run_distributed(memory_of_state) == [True] * 2


def seen_after_a_failure() -> bool:
    model = make()
    optimizer = adamw(model)
    train(model, optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.param_groups[0]["betas"] = (0.9,)
    with pytest.raises(ValueError, match="unpack"):
        optimizer.step()
    shards = [p._local_tensor for p in model.parameters()]
    return shows_dtensors(model, optimizer) and all(shard.grad is None for shard in shards)


def test_a_step_that_raises_leaves_dtensors():
    assert run_distributed(seen_after_a_failure) == [True] * 2


def seen_by_hooks_and_closure() -> list[bool]:
    model = make()
    optimizer = adamw(model)
    seen = []

    def look(*_: Any) -> None:
        seen.append(shows_dtensors(model, optimizer))

    def closure() -> Tensor:
        look()
        optimizer.zero_grad()
        return backward(model, 0)

    train(model, optimizer)
    optimizer.register_step_pre_hook(look)
    optimizer.register_step_post_hook(look)
    loss = optimizer.step(closure)
    assert isinstance(loss, Tensor)
    return seen


def test_hooks_and_closure_see_dtensors():
    assert run_distributed(seen_by_hooks_and_closure) == [[True] * 3] * 2


def trained_with_a_closure() -> list[str]:
    model, twin = make(), make()
    optimizer, oracle = adamw(model), torch.optim.AdamW(twin.parameters(), lr=0.1, fused=True)
    for step in range(3):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
        oracle.step(lambda step=step: backward(twin, step))
        oracle.zero_grad()
    return differing(everything(model, optimizer), everything(twin, oracle))


def test_a_closure_is_evaluated_before_the_step():
    assert run_distributed(trained_with_a_closure) == [[]] * 2


def without_a_gradient() -> list[str]:
    model, twin = make(), make()
    optimizer, oracle = adamw(model), torch.optim.AdamW(twin.parameters(), lr=0.1, fused=True)
    for net, opt in ((model, optimizer), (twin, oracle)):
        for step in range(4):
            backward(net, step)
            if step % 2 == 0:
                net.layers[2].weight.grad = None
            opt.step()
            opt.zero_grad()
    return differing(everything(model, optimizer), everything(twin, oracle))


def test_a_parameter_may_have_a_gradient_at_times_only():
    assert run_distributed(without_a_gradient) == [[]] * 2


def with_a_plain_parameter() -> tuple[list[str], bool]:
    model, twin = make(), make()
    extra = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = torch.optim.AdamW([*model.parameters(), extra[0]], lr=0.1, foreach=False)
    step_local_shards(optimizer)
    oracle = torch.optim.AdamW([*twin.parameters(), extra[1]], lr=0.1, foreach=False)
    for step in range(4):
        for net, opt, plain in ((model, optimizer, extra[0]), (twin, oracle, extra[1])):
            backward(net, step)
            plain.grad = torch.full((3,), float(step))
            opt.step()
            assert plain.grad is not None
            opt.zero_grad()
    odd = differing(everything(model, optimizer), everything(twin, oracle))
    return odd, torch.equal(*extra) and torch.equal(
        *(optimizer.state[extra[0]]["exp_avg"], oracle.state[extra[1]]["exp_avg"])
    )


def test_plain_parameters_are_stepped_beside_sharded_ones():
    assert run_distributed(with_a_plain_parameter) == [([], True)] * 2
