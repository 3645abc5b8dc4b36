"""`distopt schedule`: what it shows is what a run does, wherever it is shown."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distopt.cli import main
from tests.runs import rows, train, write_config

ROOT = Path(__file__).parents[1]
CONFIG = """\
model: {type: ByteGPT, width: 16, depth: 2, heads: 2}
data:
  train: {type: TokenFile, path: nowhere.npy, context: 8}
  batch_size: 8
max_steps: 1000
optimizer:
  type: AdamW
  lr: 1e-3
  weight_decay: 0.1
  paramwise_cfg:
    norm_decay_mult: 0
    bias_decay_mult: 0
    bypass_duplicate: true
    custom_keys:
      embedding: &tied {lr_mult: 0.5}
      head: *tied
param_scheduler:
  - {type: LinearLR, by_epoch: false, start_factor: 0.1, end: 100}
  - {type: CosineAnnealingLR, by_epoch: false, begin: 100, eta_min_ratio: 0.1}
"""
WARMUP = "{type: LinearLR, by_epoch: false, end: 100}"
DECAY = "{type: LinearParamScheduler, param_name: weight_decay, by_epoch: false, groups: [default]}"
BOTH = f"param_scheduler=[{WARMUP}, {DECAY}]"
EPOCHS = "param_scheduler=[{type: CosineAnnealingLR}]"
WINDOWS = "data.train={type: 'tests.components:Windows', length: 64}"


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """The name of a config without warnings, whose data is not there, in an otherwise empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("cfg.yaml").write_text(CONFIG)
    return "cfg.yaml"


@pytest.fixture
def printed(cfg, capsys):
    """What `distopt schedule` prints of the config with some arguments; it exits with 0."""

    def printed(*args):
        assert main(["schedule", cfg, *args]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return printed


def paragraphs(out):
    return [part.splitlines() for part in out.strip().split("\n\n")]


# -- what it shows is what a run does


@pytest.mark.parametrize("entries", ["by step", "by epoch"])
def test_what_it_shows_is_what_a_run_logs(tmp_path, capsys, entries):
    by_epoch = entries == "by epoch"
    schedules = [
        {"type": "LinearLR", "by_epoch": by_epoch, "convert_to_iter_based": by_epoch, "start_factor": 0.1}
        | {"end": 1 if by_epoch else 4},
        {"type": "CosineAnnealingLR", "by_epoch": by_epoch, "begin": 1 if by_epoch else 4, "eta_min": 1e-3},
        {"type": "LinearParamScheduler", "param_name": "weight_decay", "by_epoch": False}
        | {"start_factor": 0.3, "groups": ["default"]},
        {"type": "StepLR", "by_epoch": False, "step_size": 5, "groups": ["norm"]},
    ]
    config = write_config(tmp_path, param_scheduler=schedules)
    assert main(["schedule", str(config), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["rows"]
    train(config)
    logged = rows(tmp_path / "run")
    assert len(logged) == 12
    assert [{key: row[key] for key in ("step", "lr", "weight_decay")} for row in logged] == shown


def test_no_weights_are_allocated(printed, monkeypatch):
    sizes = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **kw: sizes.append(size) or zeros(*size, **kw))
    assert "1,000 steps" in printed("model.width=65536", "model.depth=64")  # 3.3 trillion parameters
    assert sizes
    assert all(zeros(*size).numel() == 1 for size in sizes)


def test_data_is_read_where_epochs_have_to_be_known(printed):
    assert printed(EPOCHS, WINDOWS).startswith("cfg.yaml: 1,000 steps, 125 epochs of 8 steps\n")


def test_max_epochs_are_told_in_steps(printed):
    out = printed("max_epochs=3", "max_steps=null", WINDOWS)
    assert out.startswith("cfg.yaml: 24 steps, 3 epochs of 8 steps\n")


# -- table


def test_the_table_has_the_edges_of_windows_and_evenly_spaced_steps(printed):
    _, table, *_ = paragraphs(printed())
    assert table[0] == "lr"
    assert table[1].split() == ["step", "embedding", "default", "+2"]
    assert [line.split()[0] for line in table[2:]] == [
        *("1", "100", "101", "200", "300", "400", "500", "600", "700", "800", "900", "1,000")
    ]
    assert table[3].split() == ["100", "0.0005", "0.001"]


def test_an_option_that_an_entry_moves_has_a_table_of_its_own(printed):
    out = printed(f"param_scheduler=[{DECAY}]")
    assert "\nlr\n step  embedding  default +2\n" in out
    assert "\nweight_decay\n step  embedding  default  norm +1\n" in out


def test_an_option_that_does_not_move_has_its_first_and_last_step_and_no_plot(printed):
    [[title], table, legend, note] = paragraphs(printed("param_scheduler=[]"))
    assert title == "cfg.yaml: 1,000 steps"
    assert [line.split()[0] for line in table] == ["lr", "step", "1", "1,000"]
    assert legend == ["  embedding", "  default, norm, bias"]
    assert note == ["note: nothing moves, param_scheduler is empty"]


def layered(*, layers=30):
    keys = {f"blocks.{i}.": {"lr_mult": 0.9 ** (layers - i)} for i in range(layers)}
    return [f"model.depth={layers}", f"optimizer.paramwise_cfg.custom_keys={json.dumps(keys)}"]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_whatever_the_terminal_no_line_of_table_and_plot_is_wider(printed, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    _, table, plot, *_ = paragraphs(printed(*layered()))
    plot = [line for line in plot if "┤" in line or "└" in line]
    assert max(map(len, [*table, *plot])) <= max(width, 26)


def test_groups_without_a_column_are_told(printed):
    out = printed(*layered())
    assert re.search(
        r"^not shown: .* and \d+ more \(distopt schedule --json and --out have all\)$", out, re.M
    )


def test_the_first_and_the_last_curve_always_have_a_column(printed):
    head = paragraphs(printed(*layered()))[1][1]
    assert head.split()[1:3] == ["default", "+1"]
    assert head.split()[-1] == "blocks.29"


def test_where_one_column_fits_it_is_of_a_group_that_moves(printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    out = printed("param_scheduler=[{type: LinearLR, by_epoch: false, groups: [norm]}]")
    assert paragraphs(out)[1][1].split() == ["step", "norm"]


# -- plot in the terminal


@pytest.mark.slow
def test_in_a_pipe_there_are_no_escapes(cfg):
    ran = subprocess.run(
        [sys.executable, "-m", "distopt", "schedule", cfg, BOTH],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "┤" in ran.stdout
    assert "\x1b" not in ran.stdout


def test_curves_are_told_apart_by_letters_in_a_pipe(printed):
    _, _, plot = paragraphs(printed())
    assert plot[-2:] == ["  a  embedding", "  b  default, norm, bias"]
    assert any("aaaa" in line for line in plot)
    assert any("bbbb" in line for line in plot)


def test_curves_are_told_apart_by_colours_in_a_terminal(printed, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = printed()
    for colour, names in (("33", "embedding"), ("208", "default, norm, bias")):
        assert f"\x1b[38;5;{colour}m━━\x1b[0m  {names}\n" in out
        assert out.count(f"\x1b[38;5;{colour}m") > 5


def test_no_color_is_respected(printed, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[38" not in printed()


def test_a_logarithmic_scale_is_of_decades(printed):
    _, _, plot = paragraphs(printed("--log"))
    assert [line.split("┤")[0].strip() for line in plot if "┤" in line] == ["0.001", "0.0001", "1e-05"]


def test_a_last_step_at_zero_does_not_break_the_logarithm(printed):
    assert "┤" in printed("--log", "param_scheduler.1={type: LinearLR, by_epoch: false, end_factor: 0}")


@pytest.mark.parametrize("scale", [[], ["--log"]], ids=["linear", "log"])
@pytest.mark.parametrize(
    "entry",
    [
        "{type: ConstantLR, factor: 0, end: 900, by_epoch: false}",
        "{type: MultiStepLR, milestones: [500], gamma: 0, by_epoch: false}",
        "{type: ExponentialLR, gamma: 1.01, by_epoch: false}",
        "{type: LinearMomentum, start_factor: 0.95, by_epoch: false}",
    ],
)
def test_curves_of_any_range_can_be_drawn(printed, entry, scale):
    assert "└" in printed(f"param_scheduler=[{entry}]", "--out", "plot.png", *scale)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_are_shown_with_a_plot_from_two_steps_on(printed, steps):
    shown = printed(f"max_steps={steps}", "param_scheduler=[{type: LinearLR, by_epoch: false}]")
    assert ("└" in shown) == (steps > 1)


def test_a_long_run_is_looked_at_in_few_places(printed, monkeypatch):
    from distopt.schedule import Schedule

    asked = []
    apply = Schedule.apply
    monkeypatch.setattr(Schedule, "apply", lambda self, step: asked.append(step) or apply(self, step))
    assert "1,000,000 steps" in printed("max_steps=1000000")
    assert len(asked) < 2100


# -- what is said below


def test_warnings_stand_below(printed):
    out = printed("param_scheduler.1.begin=200")
    assert out.splitlines()[-1].startswith("warning: param_scheduler.0 ends at step 100 and ")


def test_what_evaluation_will_do_is_not_known(printed):
    out = printed("param_scheduler.1={type: ReduceOnPlateauLR, by_epoch: false, monitor: loss}", *evaluated())
    assert "\nnote: param_scheduler.1 lowers lr where evaluation says so, which is not known" in out


def evaluated():
    return ["eval={every: 10}", "data.val={type: TokenFile, path: nowhere.npy, context: 8}"]


def test_help_needs_no_torch():
    code = """
import sys
from distopt.cli import main
try:
    main(["schedule", "--help"])
except SystemExit as exit:
    assert exit.code == 0
assert not {"torch", "rich", "plotext", "matplotlib"} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


# -- the documentation


def test_the_documented_command_prints_what_is_documented(printed):
    page = (ROOT / "docs" / "schedule.md").read_text()
    [(command, shown)] = re.findall(r"```console\n\$ distopt (schedule .*?)\n(.*?)```", page, re.DOTALL)
    Path("cfg.yaml").write_text(re.search(r"```yaml\n(model.*?)```", page, re.DOTALL)[1])
    out = printed(*shlex.split(command)[2:])
    for part in shown.split("…\n"):
        assert part in out
