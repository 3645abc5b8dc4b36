"""Plans and optimizers are the same whatever wraps the model: on real ranks, under every wrapper."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from distopt import ConfigError, Plan, build_optimizer, make_plan
from tests import wrappers
from tests.kit import run_distributed
from tests.wrappers import CFG, LENGTH, WORDS, WORLDS, fsdp1, meta_net, net, shard_blocks

every_wrapper = pytest.mark.parametrize("wrap", WORLDS, ids=lambda wrap: wrap.__name__)


def live(model: nn.Module) -> dict[str, nn.Parameter]:
    """What torch says that the wrapped model has, aliases too, by names without the wrappers'."""
    found = {}
    of_ddp = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for wrapper in ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module."):
            name = name.replace(wrapper, "")
        found[name.removeprefix("module.") if of_ddp else name] = parameter
    return found


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        fqn: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for fqn, p in live(model).items()
    }


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The same batch on every rank, so that one process alone gets the same gradients."""
    torch.manual_seed(2)
    tokens = torch.randint(WORDS, (3, LENGTH))
    nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    optimizer.step()


def stepped_alone() -> tuple[Plan, dict[str, torch.Tensor]]:
    model = net()
    plan = make_plan(model, CFG)
    step(model, build_optimizer(model, CFG, plan))
    return plan, values(model)


def apart(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> list[str]:
    return [fqn for fqn in some if not torch.allclose(some[fqn], others[fqn], atol=1e-6)]


class Facts(NamedTuple):
    """What one rank found out about one wrapper."""

    plans: tuple[Plan, Plan]
    """Made before wrapping, and of the wrapped model."""
    named: list[bool]
    """By optimizer, with the plan and without: whether each FQN stands for the live parameter."""
    owned: list[bool]
    """By optimizer: whether it owns all trainable parameters, each once."""
    still: list[str]
    """What a step did not move."""
    off: list[str]
    """What one process alone would have moved to somewhere else."""


@cache
def facts(wrap: Callable[..., nn.Module]) -> list[Facts]:
    return run_distributed(_facts, wrap, world=WORLDS[wrap])


def _facts(wrap: Callable[..., nn.Module]) -> Facts:
    plan, alone = stepped_alone()
    model = wrap(net())
    trainable = sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    named, owned = [], []
    for given in (plan, None):
        optimizer = build_optimizer(model, CFG, given)
        pairs = [
            pair
            for group in optimizer.param_groups
            for pair in zip(group["param_names"], group["params"], strict=True)
        ]
        named.append(all(live(model)[fqn] is parameter for fqn, parameter in pairs))
        owned.append(sorted(id(parameter) for _, parameter in pairs) == trainable)
    wrapped_plan, before = make_plan(model, CFG), values(model)
    step(model, optimizer)
    after = values(model)
    still = [fqn for fqn in before if torch.equal(before[fqn], after[fqn])]
    return Facts((plan, wrapped_plan), named, owned, still, apart(alone, after))


@every_wrapper
def test_the_plan_is_that_of_the_plain_model(wrap):
    for rank in facts(wrap):
        before, wrapped = rank.plans
        assert wrapped == before
        assert wrapped.digest == before.digest
        assert wrapped.warnings == before.warnings


@every_wrapper
def test_the_optimizer_owns_every_trainable_parameter_once_in_its_live_form(wrap):
    assert [rank.owned for rank in facts(wrap)] == [[True, True]] * WORLDS[wrap]


@every_wrapper
def test_the_names_in_a_group_are_those_of_its_parameters_in_their_order(wrap):
    assert [rank.named for rank in facts(wrap)] == [[True, True]] * WORLDS[wrap]


@every_wrapper
def test_a_step_moves_every_trainable_parameter(wrap):
    assert [rank.still for rank in facts(wrap)] == [["frozen.weight", "frozen.bias"]] * WORLDS[wrap]


@every_wrapper
def test_a_step_is_that_of_one_process_alone(wrap):
    assert [rank.off for rank in facts(wrap)] == [[]] * WORLDS[wrap]


@pytest.mark.parametrize("wrap", ["plain", "checkpoint_everything", "compile_it", "compile_blocks"])
def test_the_plan_of_a_model_on_meta_is_the_plan(wrap):
    assert make_plan(getattr(wrappers, wrap)(meta_net()), CFG) == make_plan(net(), CFG)


def _plan_and_refusal_on_meta() -> tuple[Plan, str]:
    model = shard_blocks(meta_net())
    with pytest.raises(ConfigError) as error:
        build_optimizer(model, CFG)
    return make_plan(model, CFG), str(error.value)


def test_a_model_sharded_on_meta_has_the_plan_but_no_optimizer():
    for plan, refusal in run_distributed(_plan_and_refusal_on_meta):
        assert plan == make_plan(net(), CFG)
        assert "still on the meta device: position, embedding.weight" in refusal


def _still_and_off_after_a_forward() -> tuple[list[str], list[str]]:
    plan, alone = stepped_alone()
    model = shard_blocks(net())
    with torch.no_grad():
        model(torch.zeros(3, LENGTH, dtype=torch.long))
    optimizer, before = build_optimizer(model, CFG, plan), values(model)
    step(model, optimizer)
    after = values(model)
    return [fqn for fqn in before if torch.equal(before[fqn], after[fqn])], apart(alone, after)


def test_what_is_bound_after_a_forward_of_fsdp2_is_trained():
    assert run_distributed(_still_and_off_after_a_forward) == [(["frozen.weight", "frozen.bias"], [])] * 2


def _off_under_fsdp1(nested: bool) -> list[str]:
    plan, alone = stepped_alone()
    model = fsdp1(net(), nested=nested)
    step(model, build_optimizer(model, CFG, plan))
    with FullyShardedDataParallel.summon_full_params(model):
        return apart(alone, values(model))


@pytest.mark.parametrize("nested", [False, True])
def test_fsdp1_is_bound_from_a_plan_made_before_and_trains_everything(nested):
    assert run_distributed(_off_under_fsdp1, nested) == [[], []]


def _refusals_of_fsdp1() -> list[str]:
    given = net().requires_grad_(True)  # flat parameters are refused by torch where only some are frozen
    plan = make_plan(given, CFG)
    flat = fsdp1(given, use_orig_params=False)
    attempts = [
        lambda: make_plan(fsdp1(net()), CFG),
        lambda: build_optimizer(fsdp1(net(), nested=True), CFG),
        lambda: build_optimizer(flat, CFG),
        lambda: build_optimizer(flat, CFG, plan),
    ]
    messages = []
    for attempt in attempts:
        with pytest.raises(ConfigError) as error:
            attempt()
        messages.append(str(error.value))
    return messages


def test_fsdp1_without_a_plan_or_original_parameters_is_refused_with_the_line_of_fsdp2():
    for *without_plan, flat_with_plan in run_distributed(_refusals_of_fsdp1):
        assert all("hides the shapes" in message for message in without_plan)
        assert "use_orig_params=False leaves flat parameters in place of position" in flat_with_plan
        assert all("fully_shard(model)" in message for message in (*without_plan, flat_with_plan))
