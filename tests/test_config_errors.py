"""What is wrong with a config is said where it stands, in the words of the config."""

import pytest

from distopt.config import load_config
from distopt.errors import ConfigError, collecting
from tests.configs import MINIMAL, failing

message = pytest.fixture(failing)


# -- files and YAML


def test_a_missing_file_is_named_with_the_nearest_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        load_config("quikstart.yaml")
    assert str(caught.value) == "quikstart.yaml: no such file\n  did you mean: quickstart.yaml?"


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cfg.yaml: the file is empty"),
        ("# only a comment\n", "cfg.yaml: the file is empty"),
        ("- a\n- b\n", "cfg.yaml: the file is no mapping of keys to values"),
        (b"a: 1\nb: \xff\n", "cfg.yaml:2: not UTF-8 text"),
        ("a: [1\nb: 2\n", "cfg.yaml:2: not valid YAML: expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", "cfg.yaml:2: not valid YAML: found character '\\t'"),
        ("a: 1\x07\n", "cfg.yaml: not valid YAML: unacceptable character"),
        ("a: 1\n---\nb: 2\n", "cfg.yaml:2: not valid YAML: but found another document"),
        ("a: *nothing\n", "cfg.yaml:1: not valid YAML: found undefined alias"),
        ("a: &a [*a]\n", "cfg.yaml: nested too deeply, or an alias inside its own anchor"),
        ("a: 1\nb: {c: 1,\n  c: 2}\n", "cfg.yaml:3: b.c: duplicate key, first at cfg.yaml:2"),
        ("a: 1\n1: 2\n", "cfg.yaml:2: a key must be text: put it in quotes"),
        ("a: {[b]: 1}\n", "cfg.yaml:1: a: a key must be text"),
        ("a:\n  <<: 1\n", "cfg.yaml:2: a: << takes a mapping, or a list of mappings"),
        ("a: !!int x\n", "cfg.yaml:1: a: invalid literal for int()"),
    ],
)
def test_broken_yaml_is_located(message, text, expected):
    assert message(text).startswith(expected)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.getcwd []", "!!python/name:os.getcwd ''", "!mine x", "!!set {}"]
)
def test_tags_that_build_objects_are_refused(message, tag):
    assert f"cfg.yaml:1: a: the tag {tag.split()[0]} is not allowed" in message(f"a: {tag}")


# -- keys


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seeed: 1", "cfg.yaml:9: seeed: unknown key\n  allowed:  work_dir, resume,"),
        ("data.val: 1", "cfg.yaml:9: data.val: unknown key"),
        (
            "checkpoint: {evry: 1}",
            "cfg.yaml:9: checkpoint.evry: unknown key\n  allowed:  every, every_minutes",
        ),
        ("strategy: {type: fsdp, shard: 1}", "cfg.yaml:9: strategy.shard: unknown key\n  allowed:  type"),
        (
            "clip_grad: {max: 1}",
            "cfg.yaml:9: clip_grad.max: unknown key\n  allowed:  max_norm, per_group, max_value",
        ),
        ("  paramwise_cfg: {norm_decay: 0}", "cfg.yaml:9: optimizer.paramwise_cfg.norm_decay: unknown key"),
    ],
)
def test_an_unknown_key_is_an_error_at_any_depth(message, text, expected):
    assert message(MINIMAL + text).startswith(expected)


def test_an_unknown_key_has_the_nearest_suggested(message):
    assert message(MINIMAL + "seeed: 1").endswith("did you mean: seed?")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("model: {type: ByteGPT}\n", "cfg.yaml: model: missing"),
        ("  batch_size: 8\n", "cfg.yaml:2: data.batch_size: missing"),
        ("max_steps: 10\n", "cfg.yaml: max_steps: missing: one of max_steps and max_epochs has to be given"),
        ("  type: AdamW\n", "cfg.yaml:6: optimizer.type: missing"),
    ],
)
def test_a_missing_key_is_located_at_what_lacks_it(message, line, expected):
    assert message(MINIMAL.replace(line, "")) == expected


# -- types and values


@pytest.mark.parametrize(
    ("override", "given", "allowed"),
    [
        ("seed=x", "x", "a whole number"),
        ("seed='3'", '"3"', "a whole number"),
        ("seed=1.5", "1.5", "a whole number"),
        ("seed=true", "true", "a whole number"),
        ("seed=", "null", "a whole number"),
        ("seed=-1", "-1", "0 or more"),
        ("max_steps=0", "0", "1 or more"),
        ("deterministic=yes", "yes", "true or false"),
        ("deterministic=1", "1", "true or false"),
        ("clip_grad.max_norm='1'", '"1"', "a number"),
        ("clip_grad.max_norm=true", "true", "a number"),
        ("clip_grad.max_norm=0", "0", "more than 0"),
        ("clip_grad.max_norm=.inf", "Infinity", "a finite number"),
        ("precision=fp8", "fp8", "fp32, tf32, bf16 or fp16"),
        ("compile=5", "5", "true, false, or a mapping of options"),
        ("activation_checkpointing=all", "all", "none, full, selective"),
        ("strategy=tp", "tp", "single, ddp, fsdp or hsdp"),
        ("seed=9223372036854775807", "9223372036854775807", "9223372036853727232 or less"),
        ("work_dir=3", "3", "text"),
        ("work_dir=''", '""', "text that is not empty"),
        ("resume=''", '""', "text that is not empty"),
        ("model=ByteGPT", "ByteGPT", "a mapping: {type: ByteGPT, …}"),
        ("optimizer=AdamW", "AdamW", "a mapping: {type: AdamW, …}"),
        ("optimizer=3", "3", "a mapping"),
        ("model.type=3", "3", "text"),
        ("data=[1, 2]", "[1, 2]", "a mapping"),
        ("param_scheduler=LinearLR", "LinearLR", "a mapping or a list of them"),
        ("param_scheduler=3", "3", "a mapping or a list of them"),
        ("optimizer.lr='1e-3'", '"1e-3"', "a finite number ≥ 0"),
        ("optimizer.lr=-1", "-1", "a finite number ≥ 0"),
        ("optimizer.weight_decay=.nan", "NaN", "a finite number ≥ 0"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(message, override, given, allowed):
    key = override.partition("=")[0]
    said = message(MINIMAL, override)
    assert said.startswith(f"override {override}: {key}: wrong ")
    assert said.splitlines()[1:3] == [f"  given:    {given}", f"  allowed:  {allowed}"]


def test_a_home_directory_that_nobody_has_is_an_error(message):
    assert "work_dir: there is no such home directory" in message(
        MINIMAL, "work_dir=~nobody-of-this-name/run"
    )


def test_a_wrong_choice_has_the_nearest_suggested(message):
    assert message(MINIMAL, "strategy=fdsp").endswith("did you mean: fsdp?")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_epochs: 1", "cfg.yaml:5: max_steps: only one of max_steps and max_epochs can be given"),
        ("eval: {every: 5}", "cfg.yaml:9: eval: there is nothing to evaluate on"),
        (
            "clip_grad: {max_norm: 1, max_value: 1}",
            "cfg.yaml:9: clip_grad: takes one of max_norm and max_value",
        ),
        ("clip_grad: {}", "cfg.yaml:9: clip_grad: takes one of max_norm and max_value"),
        ("eval: {every: 5, metrics: {loss: {type: M}}}", "cfg.yaml:9: eval.metrics.loss: the loss is always"),
        (
            "param_scheduler: {type: A, begin: 5, end: 5}",
            "cfg.yaml:9: param_scheduler.end: is not after begin (5)",
        ),
        (
            "param_scheduler: [{type: A, by_epoch: false, convert_to_iter_based: true}]",
            "cfg.yaml:9: param_scheduler.0.convert_to_iter_based: has nothing to convert",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_an_error(message, text, expected):
    assert message(MINIMAL + text).startswith(expected)


def test_a_micro_batch_has_to_divide_the_batch(message):
    expected = "override data.micro_batch_size=3: data.micro_batch_size: does not divide batch_size 8"
    assert message(MINIMAL, "data.micro_batch_size=3").startswith(expected)


def test_of_many_mistakes_the_first_twenty_are_said_and_the_rest_counted(message):
    said = message(MINIMAL + "".join(f"key_{i}: {i}\n" for i in range(1000)))
    assert said.count("unknown key") == 20
    assert said.endswith("\nand 980 more")


def test_everything_that_is_wrong_is_said_at_once(message):
    said = message(MINIMAL, "seed=x", "model.type=3", "lr=1", "optimizer.paramwise_cfg.bypass_duplicate=no")
    for key in ("seed", "model.type", "lr", "optimizer.paramwise_cfg.bypass_duplicate"):
        assert f": {key}: " in said


# -- the error itself


def test_an_error_is_moved_below_a_prefix_with_all_that_came_with_it():
    error = ConfigError.many([ConfigError("a", "x"), ConfigError("", "y", given=1)]).under("top")
    assert str(error) == "top.a: x\ntop: y\n  given:    1"


def test_an_error_keeps_the_place_it_knows():
    error = ConfigError.many([ConfigError("a", "x"), ConfigError("b", "y", where="net.py:3")])
    assert str(error.located(lambda key: f"cfg.yaml:{key}")) == "cfg.yaml:a: a: x\nnet.py:3: b: y"


def test_errors_are_collected_and_others_pass():
    errors = []
    with collecting(errors):
        raise ConfigError("a", "x")
    with pytest.raises(KeyError), collecting(errors):
        raise KeyError
    assert [error.key for error in errors] == ["a"]
