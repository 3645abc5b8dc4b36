"""A config file may build on others."""

import re
from pathlib import Path

import pytest

from distopt.config import load_config
from distopt.config.bases import merge, read_with_bases
from distopt.errors import ConfigError
from tests.configs import MINIMAL


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes files below the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**files):
        for name, text in files.items():
            path = Path(*name.split("__")).with_suffix(".yaml")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write


def message(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# -- merging


@pytest.mark.parametrize(
    ("before", "after", "merged"),
    [
        ({"a": 1, "b": {"x": 1, "y": 1}}, {"b": {"y": 2}, "c": 3}, {"a": 1, "b": {"x": 1, "y": 2}, "c": 3}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": {"x": 1}}, {"a": "x"}, {"a": "x"}),
        ({"a": "x"}, {"a": {"y": 1}}, {"a": {"y": 1}}),
        ({"a": {"x": {"y": 1}, "z": 1}}, {"a": {"_delete_": True, "x": {"w": 1}}}, {"a": {"x": {"w": 1}}}),
        ({"a": {"x": 1}}, {"a": {"_delete_": False, "y": 1}}, {"a": {"x": 1, "y": 1}}),
        ({"a": 1}, {"b": [{"_delete_": True, "c": 1}]}, {"a": 1, "b": [{"c": 1}]}),
    ],
)
def test_mappings_are_merged_and_all_else_is_replaced(before, after, merged):
    assert merge(before, after) == merged


def test_a_file_is_merged_over_its_base(write):
    write(base=MINIMAL, cfg="_base_: base.yaml\nseed: 1\noptimizer: {lr: 1}\n")
    config = load_config("cfg.yaml")
    assert (config.seed, config.max_steps) == (1, 10)
    assert (config.optimizer.type, config.optimizer.arguments) == ("AdamW", {"lr": 1})


def test_of_several_bases_the_later_wins_and_the_file_itself_over_all(write):
    write(base=MINIMAL, one="seed: 1\nmax_steps: 1", two="seed: 2\nmax_steps: 2")
    write(cfg="_base_: [base.yaml, one.yaml, two.yaml]\nmax_steps: 3")
    config = load_config("cfg.yaml")
    assert (config.seed, config.max_steps) == (2, 3)


def test_a_base_may_have_bases_which_two_may_share(write):
    write(root=MINIMAL, one="_base_: root.yaml\nseed: 1", two="_base_: root.yaml\nresume: never")
    write(cfg="_base_: [one.yaml, two.yaml]")
    config = load_config("cfg.yaml")
    assert (config.seed, config.resume) == (1, "never")


def test_a_base_may_delete_what_those_before_it_have(write):
    write(base=MINIMAL, sgd="optimizer: {_delete_: true, type: SGD}", cfg="_base_: [base.yaml, sgd.yaml]")
    assert load_config("cfg.yaml").optimizer.arguments == {}


def test_a_base_is_found_from_the_file_that_names_it(write, monkeypatch):
    write(common__root=MINIMAL, common__base="_base_: root.yaml", runs__cfg="_base_: ../common/base.yaml")
    monkeypatch.chdir("common")
    assert load_config("../runs/cfg.yaml").max_steps == 10


@pytest.mark.parametrize("name", ["~/base.yaml", "${SHARED}/base.yaml", "${NOBODYS:-base}.yaml"])
def test_a_base_may_be_named_by_home_directory_or_variable(write, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHARED", str(tmp_path))
    write(base=MINIMAL, cfg=f"_base_: {name}")
    assert load_config("cfg.yaml").max_steps == 10


def test_the_run_directory_is_named_after_the_file_itself(write):
    write(base=MINIMAL, cfg="_base_: base.yaml", other="_base_: base.yaml\nwork_dir: here")
    assert load_config("cfg.yaml").work_dir == Path("runs/cfg")
    assert load_config("other.yaml").work_dir == Path("here")


def test_overrides_are_set_in_what_was_merged(write):
    write(base=MINIMAL, cfg="_base_: base.yaml")
    assert load_config("cfg.yaml", ["optimizer.lr=2"]).optimizer.arguments == {"lr": 2}


def test_a_written_config_needs_no_bases(write, tmp_path):
    write(base=MINIMAL, cfg="_base_: base.yaml\nmodel: {_delete_: true, type: Net}")
    config = load_config("cfg.yaml")
    Path("sub").mkdir()
    Path("sub/config.yaml").write_text(config.to_yaml())
    assert load_config("sub/config.yaml") == config


def test_the_examples_of_the_documentation_are_what_they_say(write):
    page = Path(__file__).parents[1] / "docs" / "config.md"
    write(**dict(re.findall(r"^```yaml (\w+)\.yaml\n(.*?)^```", page.read_text(), re.M | re.S)))
    long, editor = load_config("long.yaml"), load_config("editor.yaml")
    assert long.model.arguments == {"width": 128, "depth": 6}
    assert (long.optimizer.arguments, long.optimizer.paramwise_cfg) == ({"lr": 0.1}, None)
    assert (long.max_steps, editor.max_steps, editor.model.arguments["depth"]) == (10000, 200, 3)


# -- where a value stands


def test_a_value_is_located_in_the_file_that_it_comes_from(write):
    write(base=MINIMAL, cfg="_base_: base.yaml\noptimizer:\n  lr: 1\n")
    locate = load_config("cfg.yaml").locate
    assert locate("data.batch_size") == "base.yaml:4"
    assert locate("optimizer.type") == "base.yaml:7"
    assert locate("optimizer.lr") == "cfg.yaml:3"
    assert locate("optimizer") == "cfg.yaml:2"
    assert locate("eval.every") == "cfg.yaml"


def test_what_was_deleted_is_located_nowhere(write):
    write(base="a: {x: 1}\nb: [1, 2]", cfg="_base_: base.yaml\na: {_delete_: true}\nb: [3]")
    document = read_with_bases(Path("cfg.yaml"))
    assert document.data == {"a": {}, "b": [3]}
    assert document.positions.locate("a.x") == "cfg.yaml:2"
    assert document.positions.locate("b.1") == "cfg.yaml:3"


def test_a_mistake_in_a_base_is_said_there(write):
    write(base=MINIMAL + "seed: x", cfg="_base_: base.yaml", broken="a: [1", other="_base_: broken.yaml")
    assert message("cfg.yaml").startswith("base.yaml:9: seed: wrong type")
    assert message("other.yaml").startswith("broken.yaml:1: not valid YAML")


# -- what is wrong with a base


def test_a_missing_base_is_said_where_it_is_named_with_the_nearest(write):
    write(common__base=MINIMAL, cfg="seed: 1\n_base_:\n- common/bse.yaml\n")
    expected = "cfg.yaml:3: _base_: common/bse.yaml: no such file\n  did you mean: common/base.yaml?"
    assert message("cfg.yaml") == expected


def test_an_empty_base_is_said_where_it_is_named(write):
    write(base="# nothing yet", cfg="_base_: base.yaml")
    assert message("cfg.yaml") == "cfg.yaml:1: _base_: base.yaml: the file is empty"


@pytest.mark.parametrize("value", ["1", "null", "''", "{a: 1}", "[1]"])
def test_a_base_is_a_path(write, value):
    write(cfg=f"_base_: {value}")
    said = message("cfg.yaml")
    assert said.startswith("cfg.yaml:1: _base_: wrong type")
    assert said.endswith("allowed:  a path or a list of paths")


def test_a_circle_of_bases_is_shown_file_by_file(write):
    write(a="_base_: b.yaml", b="seed: 1\n_base_: [c.yaml]", c="_base_: ./b.yaml")
    circle = "a.yaml:1 → b.yaml:2 → c.yaml:1 → b.yaml"
    assert message("a.yaml") == f"c.yaml:1: _base_: leads back to a file that is being read: {circle}"


def test_a_file_is_not_its_own_base(write):
    write(a="_base_: a.yaml")
    assert message("a.yaml").endswith("a.yaml:1 → a.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {_base_: a.yaml}", "cfg.yaml:1: model._base_: belongs at the top level of a file"),
        ("a: [{_base_: a.yaml}]", "cfg.yaml:1: a.0._base_: belongs at the top level of a file"),
        ("_delete_: true", "cfg.yaml:1: _delete_: takes true, in a mapping below the top level"),
        ("a: {_delete_: 1}", "cfg.yaml:1: a._delete_: takes true, in a mapping below the top level"),
    ],
)
def test_a_misplaced_base_or_delete_is_an_error(write, text, expected):
    write(cfg=text)
    assert message("cfg.yaml").startswith(expected)
