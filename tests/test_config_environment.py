"""Environment variables in the values of a config."""

import pytest
from hypothesis import given

from distopt.config import load_config
from distopt.config.document import parse
from distopt.config.environment import escape, expand
from tests.configs import MINIMAL, failing, loading, texts

load = pytest.fixture(loading)
message = pytest.fixture(failing)


def value(text):
    return parse(f"key: {text}", "cfg.yaml")[0]["key"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("CPUS", "4")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOBODYS", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${DATA}", "/data"),
        ("${DATA}/train-${CPUS}.bin", "/data/train-4.bin"),
        ("${NOBODYS:-/tmp}/x", "/tmp/x"),
        ("${EMPTY:-/tmp}", "/tmp"),
        ("${DATA:-/tmp}", "/data"),
        ("x${EMPTY}y", "xy"),
        ("x${NOBODYS:-}y", "xy"),
        ("[a, '${DATA}']", ["a", "/data"]),
        ("$${DATA}", "${DATA}"),
        ("$$${DATA}", "$${DATA}"),
        ("$DATA {DATA} $$ $", "$DATA {DATA} $$ $"),
    ],
)
def test_variables_are_replaced(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${CPUS}", 4),
        ("${NOBODYS:-1e-3}", 1e-3),
        ("${NOBODYS:-true}", True),
        ("1${EMPTY}", 1),
        ("${EMPTY}", None),
        ('"${CPUS}"', "4"),
        ("'${NOBODYS:-true}'", "true"),
        ("!!str ${CPUS}", "4"),
        ("!!int '${CPUS}'", 4),
        ("|-\n  ${CPUS}", "4"),
    ],
)
def test_without_quotes_the_value_decides_the_type(text, expected):
    assert value(text) == expected
    assert type(value(text)) is type(expected)


def test_what_a_variable_holds_is_not_looked_into(monkeypatch):
    monkeypatch.setenv("LITERAL", "{a: 1} # ${DATA} $${")
    assert value("${LITERAL}") == "{a: 1} # ${DATA} $${"


def test_keys_are_left_as_they_are():
    assert parse("${DATA}: {'${CPUS}': 1}", "cfg.yaml")[0] == {"${DATA}": {"${CPUS}": 1}}


def test_a_variable_that_is_not_set_is_named_at_its_key_and_line(message):
    said = message(MINIMAL.replace("StdlibText", "StdlibText, root: '${NOBODYS}/x'"))
    assert said.startswith("cfg.yaml:3: data.train.root: the environment variable NOBODYS is not set\n")
    assert "${NOBODYS:-…}" in said


def test_a_variable_that_is_not_set_has_a_close_one_suggested(message, monkeypatch):
    monkeypatch.setenv("IMAGENET_ROOT", "/data")
    assert message(MINIMAL + "resume: ${IMAGNET_ROOT}").endswith("did you mean: IMAGENET_ROOT?")


@pytest.mark.parametrize(
    "text", ["${}", "${1X}", "${A-b}", "${A:b}", "${DATA", "${NOBODYS:-${DATA}}", "${A:-{b}}", "${ DATA }"]
)
def test_what_is_no_variable_is_an_error_with_the_forms_there_are(message, text):
    said = message(MINIMAL + f"resume: '{text}'")
    assert said.startswith("cfg.yaml:9: resume: ${ does not begin an environment variable here\n")
    assert "${NAME}, ${NAME:-default} with no braces in the default, or $${ for a literal ${" in said


@pytest.mark.parametrize("text", ["{path: ${DATA}}", "[1, ${DATA}]", "{path: a/${DATA:-b}/c, d: 1}"])
def test_a_variable_that_needs_quotes_is_said_to(message, text):
    said = message(MINIMAL + f"callbacks: {text}")
    assert said.startswith("cfg.yaml:9: not valid YAML")
    assert 'stands in quotes: "${NAME}"' in said


def test_a_key_is_checked_with_the_value_of_its_variable(load, message):
    assert load(MINIMAL + "seed: ${CPUS}").seed == 4
    assert message(MINIMAL + "seed: ${DATA}").startswith('cfg.yaml:9: seed: wrong type\n  given:    "/data"')


@given(texts)
def test_an_escaped_text_expands_to_itself(text):
    assert expand(escape(text)) == text


def test_a_literal_is_written_out_such_that_it_is_read_back(load, tmp_path):
    config = load(MINIMAL + "callbacks: {type: C, template: '$${DATA} $$${'}")
    assert config.callbacks[0].arguments == {"template": "${DATA} $${"}
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config
