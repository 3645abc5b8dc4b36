"""Several optimizers in one run, named by custom keys."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from distopt import ConfigError, Runner, build_optimizer, build_schedule, load_config, make_plan, parallel
from distopt.cli import main
from distopt.config import OptimizerConfig, StrategyConfig, validate
from distopt.models import ByteGPT
from distopt.optim import Configured, Constructor, Verdict
from tests.kit import run_distributed
from tests.runs import losses, rows, train, write_config

MUON = {"type": "Muon", "name": "muon", "lr": 0.02, "weight_decay": 0.01}
CFG = {
    "type": "AdamW",
    "lr": 1e-2,
    "weight_decay": 0.1,
    "paramwise_cfg": {
        "norm_decay_mult": 0,
        "bias_decay_mult": 0,
        "bypass_duplicate": True,
        "custom_keys": {"blocks": MUON},
    },
}


def tiny() -> ByteGPT:
    torch.manual_seed(0)
    return ByteGPT(context=8, width=16, depth=2, heads=2)


def with_keys(keys: dict, **paramwise) -> dict:
    return {**CFG, "paramwise_cfg": {**CFG["paramwise_cfg"], "custom_keys": keys, **paramwise}}


def members(cfg: dict, model: nn.Module) -> dict[str, list[str]]:
    return {group.name: group.param_names for group in make_plan(model, cfg).groups}


def test_a_key_for_a_matrix_optimizer_takes_the_hidden_matrices_alone():
    groups = members(CFG, tiny())
    assert list(groups) == ["default", "norm", "muon", "bias"]
    assert groups["default"] == ["embedding.weight", "positions.weight"]
    assert all(fqn.startswith("blocks.") and fqn.endswith("weight") for fqn in groups["muon"])
    assert len(groups["muon"]) == 8
    assert not any("norm" in fqn for fqn in groups["muon"])


@pytest.mark.parametrize(
    ("model", "ends"),
    [
        (
            lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32)),
            {"transformer.wte.weight", "transformer.wpe.weight"},
        ),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(
                    num_hidden_layers=2,
                    hidden_size=16,
                    intermediate_size=24,
                    num_attention_heads=2,
                    vocab_size=32,
                )
            ),
            {"model.embed_tokens.weight", "lm_head.weight"},
        ),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2)), {"3.weight"}),
    ],
    ids=["gpt2", "llama", "mlp"],
)
def test_embedding_head_norms_and_vectors_stay_with_the_main_optimizer(model, ends):
    plan = make_plan(model(), with_keys({"glob:*": MUON}))
    shapes = {entry.fqn: entry.shape for group in plan.groups for entry in group.entries}
    by_muon = {fqn for fqn, optimizer in plan.optimizers.items() if optimizer == "Muon"}
    assert {fqn for fqn, shape in shapes.items() if len(shape) == 2} - by_muon == ends
    assert all(len(shapes[fqn]) == 2 for fqn in by_muon)


def test_told_to_a_matrix_optimizer_takes_what_its_key_matches():
    cfg = with_keys({"embedding": {**MUON, "hidden_only": False}})
    assert members(cfg, tiny())["muon"] == ["embedding.weight"]


def test_a_key_that_matches_no_hidden_matrix_is_an_error():
    with pytest.raises(ConfigError, match="matches no hidden matrix"):
        make_plan(tiny(), with_keys({"embedding": MUON}))


def test_a_part_has_base_values_of_its_own_and_the_classs_defaults():
    [muon] = [group for group in make_plan(tiny(), CFG).groups if group.name == "muon"]
    assert (muon.options["lr"], muon.options["weight_decay"]) == (0.02, 0.01)
    [sgd] = [g for g in make_plan(tiny(), with_keys({"positions": {"type": "SGD"}})).groups if g.part]
    assert (sgd.options["lr"], sgd.options["weight_decay"]) == (1e-3, 0)


def test_in_combine_mode_the_rules_multiply_a_parts_own_values():
    keys = {"blocks": {"type": "SGD", "lr": 0.5, "weight_decay": 0.2}}
    plan = make_plan(tiny(), with_keys(keys, custom_keys_mode="combine", bias_lr_mult=2))
    options = {group.name: group.options for group in plan.groups}
    assert options["blocks"]["weight_decay"] == 0.2
    assert options["blocks.norm"]["weight_decay"] == 0
    assert options["blocks.bias"]["lr"] == 1.0


def test_it_is_one_optimizer_whose_groups_stand_in_the_plans_order():
    model = tiny()
    optimizer = build_optimizer(model, CFG)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert [group["name"] for group in optimizer.param_groups] == ["default", "norm", "muon", "bias"]
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted({id(p) for p in model.parameters()})


def _steps(model: nn.Module, optimizers: list[torch.optim.Optimizer], count: int) -> None:
    tokens = torch.randint(256, (4, 9), generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        model(tokens)["loss"].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_it_steps_as_the_two_optimizers_would_by_themselves():
    ours, theirs = tiny(), tiny()
    _steps(ours, [build_optimizer(ours, CFG)], 3)
    plan = make_plan(theirs, CFG)
    groups = {
        kind: [
            {"params": [theirs.get_parameter(fqn) for fqn in group.param_names], **group.options}
            for group in plan.groups
            if group.optimizer == kind
        ]
        for kind in ("AdamW", "Muon")
    }
    _steps(theirs, [torch.optim.AdamW(groups["AdamW"], fused=True), torch.optim.Muon(groups["Muon"])], 3)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_its_state_dict_continues_exactly():
    first, second = tiny(), tiny()
    optimizer = build_optimizer(first, CFG)
    _steps(first, [optimizer], 2)
    again = build_optimizer(second, CFG)
    second.load_state_dict(first.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _steps(first, [optimizer], 2)
    _steps(second, [again], 2)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_value_that_the_schedule_sets_is_used_by_the_part():
    model = tiny()
    optimizer = build_optimizer(model, CFG)
    schedule = build_schedule(optimizer, {"type": "ConstantLR", "by_epoch": False, "factor": 0, "end": 9})
    schedule.apply(0)
    before = [p.detach().clone() for p in model.parameters()]
    _steps(model, [optimizer], 1)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_an_absolute_eta_min_keeps_the_ratio_between_the_parts():
    optimizer = build_optimizer(tiny(), CFG)
    cfg = {"type": "CosineAnnealingLR", "by_epoch": False, "T_max": 10, "end": 11, "eta_min": 1e-3}
    build_schedule(optimizer, cfg).apply(10)
    lrs = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert lrs == pytest.approx({"default": 1e-3, "muon": 2e-3, "norm": 1e-3, "bias": 1e-3})


OPTIMIZER = {"optimizer": CFG}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_on_two_ranks_trains_as_one_process_does(tmp_path, strategy):
    alone = write_config(tmp_path, name="alone.yaml", work_dir=str(tmp_path / "alone"), **OPTIMIZER)
    train(alone, "strategy=single")
    both = write_config(tmp_path, **OPTIMIZER)
    run_distributed(train, both, f"strategy={strategy}")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=2e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, strategy):
    whole = write_config(tmp_path, name="whole.yaml", work_dir=str(tmp_path / "whole"), **OPTIMIZER)
    run_distributed(train, whole, f"strategy={strategy}")
    cut = write_config(tmp_path, **OPTIMIZER)
    schedule = "param_scheduler.1.end=12"
    run_distributed(train, cut, f"strategy={strategy}", "max_steps=8", schedule)
    run_distributed(train, cut, f"strategy={strategy}")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_every_group_of_every_part_is_logged(tmp_path):
    run_distributed(train, write_config(tmp_path, **OPTIMIZER))
    row = rows(tmp_path / "run")[-1]
    assert list(row["lr"]) == list(row["weight_decay"]) == ["default", "norm", "muon", "bias"]
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [group["optimizer"] for group in plan["groups"]] == ["AdamW", "AdamW", "Muon", "AdamW"]


def test_a_parameter_that_another_optimizer_steps_now_starts_afresh_and_that_is_told(tmp_path, caplog):
    plain = {"optimizer": with_keys({})}
    run_distributed(train, write_config(tmp_path, max_steps=4, param_scheduler=[], **plain))
    config = load_config(write_config(tmp_path, max_steps=6, param_scheduler=[], **OPTIMIZER))
    runner = Runner(config)
    runner.train()
    assert runner.lost == ["the optimizer of 8 parameters was AdamW, is Muon: its state starts afresh"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "Moun", "lr": 0.1}, r"custom_keys\.blocks\.type: unknown type(.|\n)*Muon"),
        (
            {"type": "Muon", "momentun": 0.9},
            r"custom_keys\.blocks\.momentun: unknown argument(.|\n)*momentum",
        ),
        ({"type": "Muon", "lr_mult": 2}, r"lr_mult: multiplies lr, which this entry does not give"),
        ({"type": "Muon", "hidden_only": 1}, r"hidden_only: wrong value"),
        ({"type": "LBFGS"}, r"custom_keys\.blocks\.type: .*closure"),
        ({"type": ""}, r"type: wrong value"),
    ],
)
def test_what_makes_no_sense_is_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(tiny(), with_keys({"blocks": entry}))


def test_a_matrix_optimizer_told_to_take_vectors_is_refused_before_training(tmp_path):
    entry = {**MUON, "hidden_only": False}
    path: Path = write_config(tmp_path, optimizer=with_keys({"blocks": entry}))
    with pytest.raises(ConfigError, match=r"Muon refuses its arguments for group muon: .*2D"):
        Runner(load_config(path)).train()
    assert not (tmp_path / "run").exists()


def test_explain_says_why_a_key_for_hidden_matrices_leaves_a_norm(tmp_path, capsys):
    path = write_config(tmp_path, optimizer=CFG)
    assert main(["explain", str(path), "blocks.0.mlp_norm.weight"]) == 0
    printed = capsys.readouterr().out
    assert "set aside  custom_keys.blocks" in printed
    assert "hidden matrices only" in printed


def test_the_table_of_groups_says_which_optimizer_steps_each(tmp_path, capsys):
    assert main(["groups", str(write_config(tmp_path, optimizer=CFG))]) == 0
    printed = capsys.readouterr().out
    assert "blocks, Muon" in printed
    assert "base values, AdamW" in printed


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))


def test_all_heads_of_a_list_stay_with_the_main_optimizer():
    assert members(with_keys({"glob:*": MUON}), Heads())["muon"] == ["hidden.weight"]


def test_it_can_be_copied_with_its_state():
    model = tiny()
    optimizer = build_optimizer(model, CFG)
    _steps(model, [optimizer], 1)
    twin_model, twin = copy.deepcopy((model, optimizer))
    _steps(model, [optimizer], 1)
    _steps(twin_model, [twin], 1)
    for one, other in zip(model.parameters(), twin_model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_group_that_no_part_would_step_cannot_be_added():
    optimizer = build_optimizer(tiny(), CFG)
    with pytest.raises(RuntimeError, match="of their plan"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "name": "new"})


def test_eta_min_is_relative_to_the_sections_lr_where_parts_take_everything():
    optimizer = build_optimizer(tiny(), with_keys({"glob:*": {"type": "SGD", "lr": 0.1}}))
    cfg = {"type": "CosineAnnealingLR", "by_epoch": False, "T_max": 10, "end": 11, "eta_min": 1e-3}
    build_schedule(optimizer, cfg).apply(10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01])


def test_layer_wise_decay_reaches_the_lr_of_a_part():
    cfg = with_keys({"blocks": MUON}, layer_decay_rate=0.5)
    cfg["constructor"] = "LearningRateDecayOptimWrapperConstructor"
    lrs = {g.name: g.options["lr"] for g in make_plan(tiny(), cfg).groups if g.part}
    assert lrs == {"layer1.muon": 0.02 * 0.25, "layer2.muon": 0.02 * 0.5}


class Splitting(Constructor):
    """Gives embeddings to the optimizer of a key, with the values that all others have."""

    part = "embedding"

    def decide(self, entry, place):
        part = self.part if "embedding" in place.fqn else None
        return Verdict("all", (), {"lr": 0.1, "weight_decay": 0.0}, part=part)


class Misnaming(Splitting):
    part = "nothing"


def test_parameters_of_different_optimizers_are_never_one_group():
    cfg = {**with_keys({"embedding": {"type": "SGD"}}), "constructor": f"{__name__}:Splitting"}
    assert sorted(group.optimizer for group in make_plan(tiny(), cfg).groups) == ["AdamW", "SGD"]


def test_a_constructor_that_names_an_optimizer_there_is_not_is_told_so():
    cfg = {**with_keys({"embedding": {"type": "SGD"}}), "constructor": f"{__name__}:Misnaming"}
    with pytest.raises(ConfigError, match="an optimizer that no custom key names"):
        make_plan(tiny(), cfg)


def _refusal_of_a_part() -> str:
    model = tiny()
    cfg = with_keys({"positions": {"type": "Adafactor"}})
    groups = Configured(model, validate(OptimizerConfig, cfg))
    with pytest.raises(ConfigError) as caught:
        groups.bind(parallel.wrap(model, StrategyConfig(type="fsdp"), torch.device("cpu")))
    return caught.value.key


def test_of_parts_the_one_that_cannot_step_sharded_parameters_is_named():
    key = "optimizer.paramwise_cfg.custom_keys.positions.type"
    assert run_distributed(_refusal_of_a_part) == [key] * 2
