"""Shared parameters: a tie that something broke is an error, and can be mended."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from distopt import ConfigError, Plan, Runner, build_optimizer, load_config, make_plan, names
from tests.kit import run_distributed
from tests.runs import train, write_config
from tests.wrappers import mesh_of

CFG = {"type": "SGD", "lr": 0.1, "weight_decay": 0.1}


class Tied(nn.Module):
    """A tie across modules, and one between a parameter in a block and one outside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.outer = nn.Linear(4, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
        self.block[1].weight = self.outer.weight
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.outer(self.embedding(tokens))))


def tied() -> Tied:
    torch.manual_seed(1)
    return Tied()


def emptied(make: Callable[[], nn.Module]) -> nn.Module:
    """As `to_empty` leaves a model that was made on meta."""
    with torch.device("meta"):
        model = make()
    return model.to_empty(device="cpu")


def refusal(model: nn.Module, plan: Plan) -> str:
    with pytest.raises(ConfigError) as error:
        build_optimizer(model, CFG, plan)
    assert error.value.key == "model"
    return str(error.value)


def shard_separately(model: Tied) -> None:
    for unit in (model.embedding, model.head, model):
        fully_shard(unit, mesh=mesh_of(2))


def shard_the_block(model: Tied) -> None:
    fully_shard([model.embedding, model.head], mesh=mesh_of(2))
    fully_shard(model.block, mesh=mesh_of(2))
    fully_shard(model, mesh=mesh_of(2))


def parallelize_the_head(model: Tied) -> None:
    parallelize_module(model, mesh_of(2), {"head": ColwiseParallel()})


@pytest.mark.parametrize(
    ("wrap", "broken"),
    [
        (shard_separately, "embedding.weight is no longer head.weight"),
        (shard_the_block, "outer.weight is no longer block.1.weight"),
        (parallelize_the_head, "embedding.weight is no longer head.weight"),
    ],
)
def test_a_tie_across_units_is_an_error_that_names_owner_and_alias(wrap, broken):
    for message in run_distributed(_refusal_after, wrap):
        assert broken in message
        assert "fully_shard([a, b])" in message


def _refusal_after(wrap: Callable[[nn.Module], None]) -> str:
    model = tied()
    plan = make_plan(model, CFG)
    wrap(model)
    return refusal(model, plan)


def test_every_tie_that_to_empty_breaks_is_in_the_message():
    message = refusal(emptied(Tied), make_plan(tied(), CFG))
    assert "outer.weight is no longer block.1.weight" in message
    assert "embedding.weight is no longer head.weight" in message


def test_a_tie_broken_by_loading_with_assign_is_an_error():
    model = tied()
    plan = make_plan(model, CFG)
    copies = {fqn: value.clone() for fqn, value in model.state_dict().items()}
    model.load_state_dict(copies, assign=True)
    assert "embedding.weight is no longer head.weight" in refusal(model, plan)


def three() -> nn.Module:
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "abc"})
    model["b"].weight = model["c"].weight = model["a"].weight
    return model


def test_all_aliases_of_a_broken_tie_are_named():
    assert make_plan(three(), CFG).ties == (("a.weight", "b.weight", "c.weight"),)
    assert "a.weight is no longer b.weight, c.weight" in refusal(emptied(three), make_plan(three(), CFG))


def test_of_three_names_only_the_one_that_left_is_named():
    model = three()
    plan = make_plan(model, CFG)
    model["b"].weight = nn.Parameter(torch.zeros(2, 2))
    assert "a.weight is no longer b.weight\n" in refusal(model, plan)


def with_frozen_tie() -> nn.Module:
    model = three()
    model["a"].weight.requires_grad_(False)
    model["trained"] = nn.Linear(2, 2)
    return model


def test_a_broken_tie_of_frozen_parameters_is_an_error():
    plan = make_plan(with_frozen_tie(), CFG)
    assert plan.frozen == ("a.weight",)
    assert "a.weight is no longer b.weight" in refusal(emptied(with_frozen_tie), plan)


def with_buffer() -> nn.Module:
    """The buffer comes first in the walk: still the parameter is the owner."""
    weight = nn.Linear(2, 2, bias=False)
    reader = nn.Identity()
    reader.register_buffer("shown", weight.weight)
    return nn.ModuleDict({"reader": reader, "weight": weight})


def test_a_parameter_that_a_module_holds_as_a_buffer_is_tied_to_it():
    plan = make_plan(with_buffer(), CFG)
    assert plan.ties == (("weight.weight", "reader.shown"),)
    assert "weight.weight is no longer reader.shown" in refusal(emptied(with_buffer), plan)


def _refusal_of_a_sharded_buffer() -> str:
    model = with_buffer()
    plan = make_plan(model, CFG)
    fully_shard(model["weight"], mesh=mesh_of(2))
    return refusal(model, plan)


def test_fsdp_parts_a_parameter_from_the_buffer_that_it_also_is():
    for message in run_distributed(_refusal_of_a_sharded_buffer):
        assert "weight.weight is no longer reader.shown" in message


@pytest.mark.parametrize("make", [tied, three, with_frozen_tie, with_buffer])
def test_tie_mends_what_to_empty_broke(make):
    model = emptied(make)
    plan = make_plan(make(), CFG)
    names.tie(model, plan.ties)
    build_optimizer(model, CFG, plan)
    assert tuple(names.ties(names.visits(model))) == plan.ties


def _trained_after_retying() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tied parameter's two forms after a step under tensor parallelism, and after one alone."""
    tokens = torch.tensor([[1, 2], [3, 4]])
    alone, model = tied(), tied()
    plan = make_plan(model, CFG)
    styles = {"embedding": RowwiseParallel(input_layouts=Replicate()), "head": ColwiseParallel()}
    parallelize_module(model, mesh_of(2), styles)
    names.tie(model, plan.ties)
    for trained in (alone, model):
        optimizer = build_optimizer(trained, CFG, plan)
        logits = trained(tokens)
        (logits**2).sum().backward()
        optimizer.step()
    embedding, head = model.embedding.weight.full_tensor(), model.head.weight.full_tensor()
    return embedding.detach(), head.detach(), alone.embedding.weight.detach()


def test_embedding_and_head_can_be_tied_again_after_tensor_parallelism():
    for embedding, head, alone in run_distributed(_trained_after_retying):
        torch.testing.assert_close(embedding, head)
        torch.testing.assert_close(embedding, alone)


def test_a_rule_on_an_alias_alone_is_named_with_the_owners_verdict():
    rules = {"bypass_duplicate": True, "custom_keys": {"head": {"lr_mult": 2}}}
    plan = make_plan(tied(), {**CFG, "paramwise_cfg": rules})
    (warning,) = [warning for warning in plan.warnings if "shared parameter" in warning]
    assert (
        "owned once, as embedding.weight: embedding.weight → default; head.weight → head (lr 0.2)" in warning
    )


def test_sharing_that_is_not_allowed_names_all_verdicts():
    rules = {"custom_keys": {"head": {"lr_mult": 2}}}
    with pytest.raises(
        ConfigError, match=r"embedding\.weight → default; head\.weight → head \(lr 0\.2\)"
    ) as error:
        make_plan(tied(), {**CFG, "paramwise_cfg": rules})
    assert "bypass_duplicate: true" in error.value.allowed


def _resume(config: Path) -> str:
    with pytest.raises(ConfigError) as error:
        Runner(load_config(config)).train()
    return str(error.value)


def test_a_tie_that_the_resume_breaks_is_an_error(tmp_path):
    model = {"type": "tests.components:Untying"}
    optimizer = {"type": "SGD", "lr": 0.1}
    changes = {"model": model, "optimizer": optimizer, "param_scheduler": None, "eval": None}
    run_distributed(train, write_config(tmp_path, **changes, max_steps=4), world=1)
    [message] = run_distributed(_resume, write_config(tmp_path, **changes), world=1)
    assert "a tie was broken by the resume: first.weight is no longer second.weight" in message
