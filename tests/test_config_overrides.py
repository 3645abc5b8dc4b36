"""Single keys of a config are set on the command line."""

import pytest

from tests.configs import MINIMAL, failing, loading

load = pytest.fixture(loading)
message = pytest.fixture(failing)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.lr=3e-4", lambda config: config.optimizer.arguments["lr"] == 3e-4),
        ("strategy=fsdp", lambda config: config.strategy.type == "fsdp"),
        ("clip_grad.max_norm=1", lambda config: config.clip_grad.max_norm == 1),
        ("max_epochs=", lambda config: config.max_epochs is None),
        ("model={type: Net, width: 3}", lambda config: config.model.arguments == {"width": 3}),
        ("model.path=a=b", lambda config: config.model.arguments == {"path": "a=b"}),
        ("data.val.type=StdlibText", lambda config: config.data.val.type == "StdlibText"),
    ],
)
def test_an_override_sets_a_key(load, override, value):
    assert value(load(MINIMAL, override))


def test_an_override_may_replace_a_whole_mapping_with_a_delete_mark(load):
    assert load(MINIMAL, "optimizer={_delete_: true, type: SGD}").optimizer.arguments == {}


def test_an_override_may_hold_an_environment_variable(load, monkeypatch):
    monkeypatch.setenv("STEPS", "7")
    assert load(MINIMAL, "max_steps=${STEPS}").max_steps == 7


def test_an_override_reaches_into_a_list(load):
    text = MINIMAL + "param_scheduler: [{type: LinearLR, end: 5}, {type: ConstantLR}]"
    assert [entry.end for entry in load(text, "param_scheduler.0.end=7").param_scheduler] == [7, None]


def test_an_override_may_replace_null_by_a_mapping(load):
    assert load(MINIMAL + "clip_grad: null", "clip_grad.max_norm=2").clip_grad.max_norm == 2


def test_the_last_override_of_a_key_wins(load):
    assert load(MINIMAL, "seed=1", "seed=2").seed == 2


def test_an_override_finds_a_key_that_contains_dots(load):
    text = MINIMAL.replace(
        "AdamW", "AdamW\n  paramwise_cfg: {custom_keys: {.a: {lr_mult: 1}, .a.b: {lr_mult: 1}}}"
    )
    custom_keys = load(
        text, "optimizer.paramwise_cfg.custom_keys..a.b.lr_mult=3"
    ).optimizer.paramwise_cfg.custom_keys
    assert custom_keys == {".a": {"lr_mult": 1}, ".a.b": {"lr_mult": 3}}


# -- what is wrong with one


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "override seed: an override is written key=value"),
        ("=1", "override =1: an override is written key=value"),
        ("seed=[1", "override seed=[1: seed: not valid YAML"),
        ("seed=!!python/name:os.getcwd", "override seed=!!python/name:os.getcwd: seed: the tag"),
        ("_base_=a.yaml", "override _base_=a.yaml: _base_: can be written in a file only"),
        (
            "model._delete_=true",
            "override model._delete_=true: model._delete_: can be written in a file only",
        ),
        ("model={_delete_: 1}", "override model={_delete_: 1}: model._delete_: takes true"),
        ("model={a: {_base_: b}}", "override model={a: {_base_: b}}: model.a._base_: belongs at the top"),
        ("model={a: ${X}}", "override model={a: ${X}}: model: not valid YAML"),
        (
            "model={a: '${NOBODYS}'}",
            "override model={a: '${NOBODYS}'}: model.a: the environment variable NOBODYS is not set",
        ),
        ("model..x=1", "override model..x=1: model: an empty key"),
        ("model.type.x=1", "override model.type.x=1: model.type: has no keys, so .x cannot be set in it"),
        ("max_steps.x=1", "override max_steps.x=1: max_steps: has no keys, so .x cannot be set in it"),
        (
            "param_scheduler.1.end=3",
            "override param_scheduler.1.end=3: param_scheduler.1: no such item of the list",
        ),
        ("param_scheduler.x=3", "override param_scheduler.x=3: param_scheduler.x: no such item of the list"),
        (
            "callbacks.0.type=EarlyStop",
            "override callbacks.0.type=EarlyStop: callbacks: there is no list to set an item of",
        ),
        (
            f"param_scheduler.{'1' * 5000}=3",
            f"override param_scheduler.{'1' * 5000}=3: param_scheduler.{'1' * 5000}: no such item",
        ),
        (
            "param_scheduler.-1=3",
            "override param_scheduler.-1=3: param_scheduler.-1: no such item of the list",
        ),
    ],
)
def test_a_wrong_override_is_named(message, override, expected):
    assert message(MINIMAL + "param_scheduler: [{type: LinearLR}]", override).startswith(expected)


def test_an_override_below_a_short_form_says_how_to_write_it(message):
    said = message(MINIMAL + "strategy: fsdp", "strategy.reshard=true")
    assert "allowed:  the whole mapping: 'strategy={type: fsdp, reshard: …}'" in said
