"""The directories of checkpoints: committed by a rename, pruned, and where a run starts from them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distopt import ConfigError
from distopt.checkpoint import directory
from distopt.checkpoint.resume import Start, find_start

CONFIG = {"seed": 0, "work_dir": "a", "resume": "auto", "optimizer": {"lr": 1e-3}}
OTHER = {**CONFIG, "optimizer": {"lr": 3e-4}}


def _commit(work_dir: Path, step: int, config: dict | None = None) -> Path:
    path = directory.step_directory(work_dir, step)
    partial = directory.partial_of(path)
    partial.mkdir(parents=True)
    for name, text in directory.Progress(step, 2, [{"epoch": 0, "offset": step * 8}]).document().items():
        (partial / name).write_text(text)
    if config:
        (partial / "config.yaml").write_text(yaml.safe_dump(config))
    directory.commit(path)
    return path


def _damage(checkpoint: Path) -> Path:
    (checkpoint / "progress.json").write_text("")
    return checkpoint


def _run(work_dir: Path, state: str, config: dict = CONFIG) -> Path:
    path = _commit(work_dir, 4)
    (work_dir / "config.yaml").write_text(yaml.safe_dump(config))
    (work_dir / "status.json").write_text(json.dumps({"state": state}))
    return path


def test_a_start_is_found_without_torch():
    code = "import sys, distopt.checkpoint.resume; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_checkpoint_without_its_final_name_is_never_found(tmp_path):
    (tmp_path / "checkpoints" / "step_00000003.partial").mkdir(parents=True)
    assert directory.newest(tmp_path) is None


def test_the_newest_is_the_one_with_the_most_steps(tmp_path):
    for step in (5, 100_000_000, 20):
        _commit(tmp_path, step)
    assert directory.newest(tmp_path) == directory.step_directory(tmp_path, 100_000_000)


def test_prune_keeps_the_last_and_removes_what_was_never_committed(tmp_path):
    for step in (1, 2, 3):
        _commit(tmp_path, step)
    (tmp_path / "checkpoints" / "step_00000004.partial").mkdir()
    directory.prune(tmp_path, keep_last=2)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step_00000002",
        "step_00000003",
    ]


def test_prune_does_not_count_a_damaged_checkpoint_as_kept(tmp_path):
    paths = [_commit(tmp_path, 1), _damage(_commit(tmp_path, 2))]
    directory.prune(tmp_path, keep_last=1)
    assert directory.committed(tmp_path) == paths


def test_committing_replaces_a_checkpoint_of_the_same_step(tmp_path):
    path = _commit(tmp_path, 3)
    partial = directory.partial_of(path)
    partial.mkdir()
    (partial / "new").touch()
    directory.commit(path)
    assert (path / "new").exists()
    assert not (path / "progress.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": "4", "epoch": 0, "offset": 0, "world_size": 1}'])
def test_progress_that_is_none_is_a_value_error(tmp_path, text):
    (tmp_path / "progress.json").write_text(text)
    with pytest.raises(ValueError, match=r"progress\.json"):
        directory.read_progress(tmp_path)


def test_a_missing_or_empty_run_directory_starts_afresh(tmp_path):
    assert find_start(tmp_path / "none", "auto", CONFIG) == Start()
    assert find_start(tmp_path, "never", CONFIG) == Start()


def test_an_unfinished_run_continues(tmp_path):
    path = _run(tmp_path, "running")
    assert find_start(tmp_path, "auto", CONFIG) == Start(path, 4)


def test_a_finished_run_of_the_same_config_is_finished_wherever_it_lies(tmp_path):
    _run(tmp_path, "done")
    assert find_start(tmp_path, "auto", {**CONFIG, "work_dir": "b"}).finished


def test_a_finished_run_with_another_config_continues_and_names_the_differences(tmp_path):
    _run(tmp_path, "done")
    start = find_start(tmp_path, "auto", OTHER)
    assert not start.finished
    assert start.differences == ("optimizer.lr: 0.001 → 0.0003",)


def test_the_differences_are_to_the_config_of_the_checkpoint(tmp_path):
    """The run directory's own config is already that of a start that never came to a checkpoint."""
    _run(tmp_path, "failed", OTHER)
    _commit(tmp_path, 8, CONFIG)
    assert find_start(tmp_path, "auto", OTHER).differences == ("optimizer.lr: 0.001 → 0.0003",)


def test_a_damaged_checkpoint_is_passed_over_and_told(tmp_path):
    path, damaged = _run(tmp_path, "done"), _damage(_commit(tmp_path, 8))
    start = find_start(tmp_path, "auto", CONFIG)
    assert (start.checkpoint, start.step, start.finished) == (path, 4, False)
    assert [str(damaged) in sentence for sentence in start.skipped] == [True]


def test_never_refuses_a_directory_that_is_not_empty(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"resume: .*not empty"):
        find_start(tmp_path, "never", CONFIG)


def test_a_path_is_the_origin_of_a_new_run(tmp_path):
    path = _commit(tmp_path / "origin", 4)
    assert find_start(tmp_path / "new", str(path), CONFIG) == Start(path, 4)


def test_a_path_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = _commit(tmp_path / "origin", 4)
    assert find_start(tmp_path / "new", "~/origin/checkpoints/step_00000004", CONFIG).checkpoint == path


def test_a_run_with_checkpoints_of_its_own_continues_also_with_a_path(tmp_path):
    origin, own = _commit(tmp_path / "origin", 4), _commit(tmp_path / "new", 2)
    assert find_start(tmp_path / "new", str(origin), CONFIG) == Start(own, 2)


def test_a_finished_run_that_came_from_a_path_is_finished(tmp_path):
    origin = _commit(tmp_path / "origin", 2)
    _run(tmp_path / "new", "done")
    assert find_start(tmp_path / "new", str(origin), CONFIG).finished


def test_an_earlier_checkpoint_of_the_same_run_is_refused(tmp_path):
    earlier, newest = _commit(tmp_path, 4), _commit(tmp_path, 8)
    with pytest.raises(ConfigError, match=r"resume: .*would undo later checkpoints"):
        find_start(tmp_path, str(earlier), CONFIG)
    assert find_start(tmp_path, str(newest), CONFIG).checkpoint == newest


def test_a_path_that_holds_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"resume: no complete checkpoint"):
        find_start(tmp_path / "run", str(tmp_path), CONFIG)


def test_a_path_that_was_never_committed_is_refused(tmp_path):
    path = _commit(tmp_path / "origin", 4)
    partial = path.rename(directory.partial_of(path))
    with pytest.raises(ConfigError, match=r"resume: no complete checkpoint"):
        find_start(tmp_path / "new", str(partial), CONFIG)
