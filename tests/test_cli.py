"""The commands: what they print, what they exit with, and what they leave alone."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distopt import __version__, train
from distopt.cli import main
from tests.kit import run_torchrun

CONFIG = """\
model: {type: ByteGPT, width: 16, depth: 1}
data:
  train: {type: StdlibText, limit: 40}
  val: {type: StdlibText, split: val, limit: 10}
  batch_size: 8
max_steps: 2
optimizer:
  type: AdamW
  lr: 1e-3
  weight_decay: 0.1
  paramwise_cfg: {norm_decay_mult: 0, bypass_duplicate: true}
param_scheduler:
  - {type: LinearLR, by_epoch: false, end: 2}
"""


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """The name of a sound config in an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)
    Path("cfg.yaml").write_text(CONFIG)
    return "cfg.yaml"


@pytest.fixture
def complaint(cfg, capsys):
    """What `distopt check` says of the config with some overrides; it exits with 2 and writes nothing."""

    def complaint(*args):
        assert main(["check", cfg, *args]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert written() == [cfg]
        return err

    return complaint


def written():
    """What is in the working directory."""
    return [path.name for path in Path().iterdir()]


# -- distopt


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"distopt {__version__}\n"


def test_without_a_command_the_help_is_printed(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert (out, "look for mistakes" in err) == ("", True)


def test_the_package_runs_as_the_command(cfg):
    check = subprocess.run(
        [sys.executable, "-m", "distopt", "check", cfg], capture_output=True, text=True, check=True
    )
    assert check.stdout.startswith("cfg.yaml: ok\n")


def test_an_unknown_command_is_a_user_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["chekc"])
    assert caught.value.code == 2
    assert "choose from" in capsys.readouterr().err


# -- distopt check


def test_without_arguments_the_config_alone_is_required(capsys):
    with pytest.raises(SystemExit):
        main(["check"])
    assert capsys.readouterr().err.endswith("the following arguments are required: cfg.yaml\n")


def test_a_sound_config_is_ok_and_nothing_is_written(cfg, capsys):
    assert main(["check", cfg]) == 0
    assert capsys.readouterr().out.startswith("cfg.yaml: ok\n")
    assert written() == [cfg]


def test_overrides_may_stand_on_both_sides_of_an_option(cfg, capsys):
    assert main(["check", cfg, "seed=1", "--nproc", "2", "data.batch_size=12"]) == 0
    assert "batch: 12 samples = 2 ranks × 6 × 1 micro-step\n" in capsys.readouterr().out


def test_every_mistake_that_needs_no_import_is_found_at_once(complaint):
    said = complaint(
        "--nproc=3",
        "model.type=ByteGTP",
        "data.train.type=Text",
        "data.val.type=Text",
        "optimizer.type=AdamWW",
        "work_dir=/proc/run",
        "resume=nver",
        "param_scheduler.0.type=LinearRL",
    )
    keys = ["model.type", "data.train.type", "data.val.type", "optimizer.type", "work_dir", "resume"]
    for key in [*keys, "data.batch_size", "param_scheduler.0.type"]:
        assert f": {key}: " in said


def test_the_name_of_an_object_among_arguments_is_looked_at(complaint):
    assert complaint("model.inner=[{type: 'a:b', of: {type: 'a:b:c'}}]") == (
        "override model.inner=[{type: 'a:b', of: {type: 'a:b:c'}}]: model.inner.0.of.type: "
        "neither a short name nor an import path\n  given:    a:b:c\n  allowed:  package.module:Name\n\n"
    )


def test_a_key_is_located(complaint):
    Path("cfg.yaml").write_text(CONFIG.replace("depth: 1", "depth: one") + "sed: 1\n")
    assert complaint().startswith("cfg.yaml:14: sed: unknown key\n")


@pytest.mark.parametrize(
    ("work_dir", "problem"),
    [
        ("cfg.yaml", "cannot be written: cfg.yaml: Not a directory"),
        ("cfg.yaml/run", "cannot be written: {here}/cfg.yaml: Not a directory"),
        ("/proc/run", "nothing can be created in /proc"),
        ("/proc", "nothing can be created in /proc"),
    ],
)
def test_a_work_dir_that_cannot_be_written_is_refused(complaint, work_dir, problem):
    said = complaint(f"work_dir={work_dir}")
    assert said.startswith(f"override work_dir={work_dir}: work_dir: {problem.format(here=Path.cwd())}\n")


@pytest.mark.parametrize("name", ["checkpoints", "logs", "tensorboard"])
def test_a_file_where_the_run_needs_a_directory_is_refused(cfg, capsys, name):
    Path(name).touch()
    assert main(["check", cfg, "work_dir=."]) == 2
    assert f"work_dir: {name} is not a directory" in capsys.readouterr().err


def test_a_work_dir_that_exists_or_has_an_existing_ancestor_is_fine(cfg):
    assert main(["check", cfg, "work_dir=."]) == 0
    assert main(["check", cfg, "work_dir=a/b/c"]) == 0


def test_a_checkpoint_to_resume_has_to_exist(complaint):
    assert "resume: no complete checkpoint" in complaint("resume=runs/other")
    assert "resume: no complete checkpoint" in complaint("resume=.")


@pytest.mark.parametrize("nproc", ["0", "-1", "two"])
def test_nproc_is_a_number_of_ranks(cfg, nproc):
    with pytest.raises(SystemExit) as caught:
        main(["check", cfg, f"--nproc={nproc}"])
    assert caught.value.code == 2


def test_a_full_check_tells_data_and_groups(cfg, capsys):
    assert main(["check", cfg, "--full"]) == 0
    out = capsys.readouterr().out
    assert "data: 40 samples, 5 steps an epoch, 2 steps in all" in out
    assert "optimizer: 2 groups: default, norm" in out
    assert written() == [cfg]


def test_a_full_check_finds_what_only_the_components_know_at_once(complaint):
    said = complaint("--full", "model.widht=3", "data.train.limit=4", "data.val.splt=val")
    for problem in (
        "override model.widht=3: model.widht: unknown argument of ByteGPT",
        "cfg.yaml:5: data.batch_size: larger than the training data",
        "override data.val.splt=val: data.val.splt: unknown argument of StdlibText",
    ):
        assert problem in said


def test_a_full_check_holds_the_optimizer_and_its_rules_against_the_model(complaint):
    assert "optimizer.momentum: unknown argument" in complaint("--full", "optimizer.momentum=0.9")
    custom_keys = "optimizer.paramwise_cfg.custom_keys={haed: {lr_mult: 2}}"
    assert "optimizer.paramwise_cfg.custom_keys.haed: " in complaint("--full", custom_keys)


EARLY_STOP = "callbacks=[{type: EarlyStop, metric: acuracy}]"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("strategy={type: fsdp, units: [Blok]}", "strategy.units"),
        ("strategy={type: fsdp, ignored: [embedding.weight]}", "strategy.ignored"),
        ("activation_checkpointing={modules: [Blok]}", "activation_checkpointing.modules"),
        ("compile={backend: inducter}", "compile.backend"),
    ],
)
def test_a_full_check_holds_what_wraps_against_the_model(complaint, override, key):
    assert f"{key}: " in complaint("--full", override)


def test_a_full_check_warns_of_a_metric_that_only_the_model_could_return(cfg, capsys):
    metrics = "eval={every: 5, metrics: {accuracy: {type: Accuracy, task: binary}}}"
    assert main(["check", cfg, "--full", EARLY_STOP, metrics, "data.val={type: StdlibText}"]) == 0
    said = capsys.readouterr().out
    assert "warning: callbacks.0: metric 'acuracy' is not among loss, accuracy; it has to be" in said


def test_a_full_check_knows_that_without_evaluation_there_is_no_metric(complaint):
    said = complaint("--full", EARLY_STOP, "eval=null")
    assert "callbacks.0.metric: evaluation produces no such metric" in said


def test_a_full_check_reads_epochs_from_the_data(cfg):
    assert main(["check", cfg, "--full", "param_scheduler=[{type: CosineAnnealingLR, by_epoch: true}]"]) == 0


def test_a_model_that_cannot_be_built_on_meta_is_built_all_the_same(cfg, monkeypatch):
    Path("swin.py").write_text("""
import torch
class Net(torch.nn.Linear):
    def __init__(self):
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        super().__init__(2, 2)
""")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["check", cfg, "--full", "model={type: swin:Net}"]) == 0


def test_what_a_model_raises_wherever_it_is_built_is_said_once(complaint):
    said = complaint(
        "--full", "model={type: torch.nn:Conv1d, in_channels: 3, out_channels: 4, kernel_size: 1, groups: 2}"
    )
    assert (
        said.count("model: torch.nn:Conv1d raised ValueError: in_channels must be divisible by groups") == 1
    )


# -- without torch


@pytest.mark.parametrize(
    ("module", "args", "status"),
    [
        ("distopt.cli", ["--help"], 0),
        ("distopt.cli", ["check", "--help"], 0),
        ("distopt.cli", ["check", "cfg.yaml", "--nproc=2"], 0),
        ("distopt.cli", ["check", "cfg.yaml", "optimizer.type=AdamWW"], 2),
        ("distopt.cli", ["check", "none.yaml"], 2),
        ("distopt.train", ["--help"], 0),
        ("distopt.train", ["--version"], 0),
        ("distopt.train", ["cfg.yaml", "seed=x"], 2),
        ("distopt.train", ["cfg.yaml", "model.type=x", "work_dir=/proc/x"], 2),
    ],
)
def test_answers_that_need_no_torch_do_not_import_it(cfg, module, args, status):
    code = f"""
import sys
from {module} import main
try:
    status = main({args})
except SystemExit as exit:
    status = exit.code
assert not {{"torch", "rich", "tensorboard"}} & set(sys.modules)
sys.exit(status)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == status


# -- python -m distopt.train


def test_a_user_error_ends_a_worker_with_one_message(cfg, capsys):
    assert train.main([cfg, "seed=x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "override seed=x: seed: wrong type\n  given:    x\n  allowed:  a whole number\n\n"


def test_the_world_is_checked_before_anything_starts(cfg, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert train.main([cfg]) == 2
    assert "cfg.yaml:5: data.batch_size: cannot be divided over 3 ranks" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_that_only_another_machine_sees_is_said_in_its_name(cfg):
    worker = subprocess.run(
        [sys.executable, "-m", "distopt.train", cfg, "seed=x"],
        env={**os.environ, "RANK": "8", "LOCAL_RANK": "0", "WORLD_SIZE": "16"},
        capture_output=True,
        text=True,
    )
    assert worker.returncode == 2
    assert worker.stderr.startswith("[rank 8] override seed=x: seed: wrong type\n")


def test_another_rank_that_is_ended_says_nothing(cfg):
    worker = subprocess.Popen(
        [sys.executable, "-m", "distopt.train", cfg, "seed=x"],
        env={**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"},
        stderr=subprocess.PIPE,
    )
    worker.terminate()
    assert worker.communicate() == (None, b"")
    assert worker.returncode == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=x", "override seed=x: seed: wrong type"),
        (
            "data.batch_size=41",
            "override data.batch_size=41: data.batch_size: cannot be divided over 2 ranks",
        ),
        ("model.widht=3", "override model.widht=3: model.widht: unknown argument of ByteGPT"),
    ],
)
def test_under_torchrun_a_message_stands_once_before_its_report(cfg, override, message):
    run = run_torchrun([cfg, override])
    assert run.returncode == 1
    assert run.stderr.count(message) == 1
    assert "Traceback" not in run.stderr[: run.stderr.index(message)]
    before, _, report = run.stderr.partition("ChildFailedError")
    assert message in before
    assert "exitcode  : 2" in report
    assert written() == [cfg]


# -- the documentation


def test_the_documented_commands_print_what_is_documented(cfg, capsys):
    page = (Path(__file__).parents[1] / "docs" / "config.md").read_text()
    Path(cfg).write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    commands = re.findall(r"```console\n\$ distopt (.*?)\n(.*?)```", page, re.DOTALL)
    assert len(commands) == 2
    for command, expected in commands:
        main(shlex.split(command))
        assert "".join(capsys.readouterr()).strip() == expected.strip()
