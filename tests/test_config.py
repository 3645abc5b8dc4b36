"""A config file means what it says."""

from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distopt.config import (
    Config,
    OptimizerConfig,
    SchedulerConfig,
    load_config,
    validate,
)
from distopt.config.document import parse
from distopt.errors import ConfigError
from tests.configs import MINIMAL, loading, plain_data

load = pytest.fixture(loading)


def test_a_minimal_config_has_the_defaults(load):
    config = load()
    assert config.work_dir == Path("runs/cfg")
    assert (config.resume, config.seed, config.deterministic) == ("auto", 0, False)
    assert (config.data.val, config.data.micro_batch_size, config.data.num_workers) == (None, None, 0)
    assert (config.max_steps, config.max_epochs) == (10, None)
    assert (config.strategy.type, config.precision, config.compile) == ("ddp", "fp32", None)
    assert (config.optimizer.paramwise_cfg, config.optimizer.unmatched_keys) == (None, "error")
    assert (config.param_scheduler, config.clip_grad, config.eval) == ([], None, None)
    assert (config.checkpoint.every, config.checkpoint.keep_last, config.log.every) == (None, 3, 10)


def test_a_config_cannot_be_changed(load):
    with pytest.raises(ValueError, match="frozen"):
        load().seed = 1


def test_keys_of_a_component_beside_its_type_are_its_arguments(load):
    config = load(
        MINIMAL.replace("{type: ByteGPT}", "{type: ByteGPT, width: 96, copy: true, model_config: 1}")
    )
    assert config.model.arguments == {"width": 96, "copy": True, "model_config": 1}


def test_keys_of_the_optimizer_that_are_not_distopts_are_its_arguments():
    config = validate(
        OptimizerConfig, {"type": "AdamW", "lr": 1e-3, "betas": [0.9, 0.95], "unmatched_keys": "warn"}
    )
    assert config.arguments == {"lr": 1e-3, "betas": [0.9, 0.95]}


def test_an_empty_paramwise_cfg_counts_as_not_given():
    assert validate(OptimizerConfig, {"type": "SGD", "paramwise_cfg": {}}).paramwise_cfg is None


def test_a_null_multiplier_counts_as_not_given():
    config = validate(OptimizerConfig, {"type": "SGD", "lr": 0.1, "paramwise_cfg": {"norm_decay_mult": None}})
    assert config.paramwise_cfg.norm_decay_mult is None


def test_any_mapping_can_be_validated():
    assert validate(OptimizerConfig, MappingProxyType({"type": "SGD"})).type == "SGD"


def test_a_validated_section_is_returned_as_it_is():
    config = validate(OptimizerConfig, {"type": "SGD"})
    assert validate(OptimizerConfig, config) is config


def test_one_scheduler_may_stand_without_a_list(load):
    config = load(MINIMAL + "param_scheduler: {type: ConstantLR, factor: 0.5}")
    assert [entry.arguments for entry in config.param_scheduler] == [{"factor": 0.5}]


def test_no_scheduler_may_be_written_as_null(load):
    assert load(MINIMAL + "param_scheduler: null").param_scheduler == []


def test_only_where_gradients_are_exchanged_unused_parameters_are_looked_for(load):
    assert load(MINIMAL + "strategy: {find_unused_parameters: true}").strategy.find_unused_parameters
    with pytest.raises(ConfigError, match="means nothing to single") as caught:
        load(MINIMAL + "strategy: {type: single, find_unused_parameters: true}")
    assert caught.value.key == "strategy.find_unused_parameters"


@pytest.mark.parametrize("text", ["strategy: fsdp", "strategy: {type: fsdp}"])
def test_a_strategy_may_be_its_type_alone(load, text):
    assert load(MINIMAL + text).strategy.type == "fsdp"


def test_a_whole_number_is_a_number(load):
    assert load(MINIMAL + "clip_grad: {max_norm: 1}").clip_grad.max_norm == 1.0


def test_the_home_directory_can_be_written_as_a_tilde(load):
    assert load(MINIMAL + "work_dir: ~/run").work_dir == Path.home() / "run"


# -- where a key stands


def test_every_value_is_located_at_its_key(load):
    config = load(MINIMAL + "param_scheduler:\n  - type: LinearLR\n    end: 5\n")
    assert config.locate("data.batch_size") == "cfg.yaml:4"
    assert config.locate("optimizer") == "cfg.yaml:6"
    assert config.locate("param_scheduler.0.end") == "cfg.yaml:11"


def test_a_missing_key_is_located_at_the_nearest_above(load):
    config = load()
    assert config.locate("data.val.type") == "cfg.yaml:2"
    assert config.locate("clip_grad.max_norm") == "cfg.yaml"


def test_an_overridden_key_is_located_at_the_override(load):
    config = load(MINIMAL, "optimizer={type: SGD, lr: 1}")
    assert config.locate("optimizer.lr") == "override optimizer={type: SGD, lr: 1}"


def test_merged_keys_are_located_where_they_were_written():
    _, positions = parse("a: &a\n  x: 1\nb:\n  <<: *a\n  y: 2\n", "cfg.yaml")
    assert (positions.locate("b.x"), positions.locate("b.y")) == ("cfg.yaml:2", "cfg.yaml:5")


def test_a_config_that_was_not_read_from_a_file_locates_nothing():
    config = validate(Config, {**parse(MINIMAL, "")[0], "work_dir": "run"})
    assert config.locate("seed") is None


# -- there and back


arguments = st.dictionaries(st.sampled_from(["width", "1e-3", "on", "a.b"]), plain_data, max_size=3)
multipliers = st.none() | st.floats(0, 10)
configs = st.fixed_dictionaries(
    {
        "work_dir": st.sampled_from(["run", "a b", "1e-3", "/tmp/é"]),
        "model": arguments.map(lambda extra: {"type": "Net", **extra}),
        "data": st.fixed_dictionaries(
            {"train": arguments.map(lambda extra: {"type": "D", **extra}), "batch_size": st.integers(1)}
        ),
        "max_epochs": st.integers(1),
        "optimizer": st.fixed_dictionaries(
            {"type": st.just("AdamW"), "lr": st.floats(0, 1), "weight_decay": st.integers(0, 3)},
            optional={
                "betas": st.lists(st.floats(0, 1), max_size=2),
                "paramwise_cfg": st.fixed_dictionaries(
                    {},
                    optional={
                        "norm_decay_mult": multipliers,
                        "norm_types": st.sampled_from(["auto", ["a.B"]]),
                        "custom_keys": st.dictionaries(
                            st.text(st.characters(codec="utf-8"), min_size=1),
                            st.fixed_dictionaries(
                                {}, optional={"lr_mult": st.floats(0, 1), "name": st.just("x")}
                            ),
                        ),
                    },
                ),
            },
        ),
    },
    optional={
        "strategy": st.sampled_from(["ddp", {"type": "fsdp"}]),
        "param_scheduler": st.lists(
            st.fixed_dictionaries({"type": st.just("LinearLR"), "end": st.none()}), max_size=2
        ),
        "clip_grad": st.none() | st.fixed_dictionaries({"max_norm": st.floats(0.1, 9)}),
        "loss": st.none() | arguments.map(lambda extra: {"type": "L", **extra}),
        "callbacks": st.lists(arguments.map(lambda extra: {"type": "C", **extra}), max_size=2),
        "resume": st.sampled_from(["auto", "never", "runs/a/checkpoints/step_1"]),
        "log": st.fixed_dictionaries({"every": st.integers(1, 9)}),
    },
)


@given(configs)
def test_a_config_that_is_written_out_loads_to_an_equal_one(data):
    config = validate(Config, data)
    assert validate(Config, parse(config.to_yaml(), "cfg.yaml")[0]) == config


def test_a_loaded_config_equals_the_same_one_from_another_file(load, tmp_path):
    config = load(MINIMAL, "work_dir=run")
    (tmp_path / "other.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "other.yaml") == config


def test_a_scheduler_entry_has_a_window_and_arguments():
    entry = validate(SchedulerConfig, {"type": "LinearLR", "by_epoch": False, "end": 5, "start_factor": 0.1})
    assert (entry.begin, entry.end, entry.arguments) == (0, 5, {"start_factor": 0.1})
