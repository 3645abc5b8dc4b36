"""The files of a checkpoint: written whole or not at all, and read without running what is in them."""

from __future__ import annotations

import enum
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_saver

from distopt import ConfigError, build_optimizer, parallel
from distopt.checkpoint import directory
from distopt.checkpoint.reader import TensorReader
from distopt.checkpoint.state import capture, load
from distopt.checkpoint.writer import write
from distopt.config import StrategyConfig
from tests.kit import run_distributed

PROGRESS = directory.Progress(step=3, world_size=2, data=[{"epoch": 1, "offset": 24}] * 2)


def _make() -> tuple[nn.Module, torch.optim.Optimizer]:
    wrapped = parallel.wrap(nn.Linear(2, 2), StrategyConfig(type="ddp"), torch.device("cpu"))
    return wrapped, build_optimizer(wrapped, {"type": "SGD", "lr": 0.1})


def _save(path: Path) -> None:
    write(path, capture(*_make(), PROGRESS, {}))


def _load_error(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, *_make())
    return str(error.value)


def _save_in_vain(path: Path) -> str:
    with pytest.raises(OSError, match="could not be written") as error:
        write(path, capture(*_make(), PROGRESS, {"no/such/folder": ""}))
    return str(error.value)


def test_a_failing_write_is_told_on_every_rank_and_leaves_nothing(tmp_path):
    path = directory.step_directory(tmp_path, 3)
    for message in run_distributed(_save_in_vain, path):
        assert "No such file" in message
        assert len(message.splitlines()) == 1
    assert list(path.parent.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_told_on_every_rank(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    for message in run_distributed(_save_in_vain, directory.step_directory(tmp_path, 3)):
        assert len(message.splitlines()) == 1


def test_a_step_that_is_saved_again_replaces_the_checkpoint(tmp_path):
    path = directory.step_directory(tmp_path, 3)
    run_distributed(_save, path)
    (path / "old").touch()
    run_distributed(_save, path)
    assert directory.newest(tmp_path) == path
    assert not (path / "old").exists()
    directory.prune(tmp_path, keep_last=1)
    assert list(path.parent.iterdir()) == [path]


class Touch:
    """What a hostile file holds: unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_the_metadata_is_refused_and_not_run(tmp_path):
    path = directory.step_directory(tmp_path, 3)
    run_distributed(_save, path)
    (path / ".metadata").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    assert "posix.system has no place in it" in run_distributed(_load_error, path)[0]
    assert not (tmp_path / "ran").exists()


class PicklerOfPython3112(pickle.Pickler):
    """Members of enums as Python 3.11.0 to 3.11.3 pickle them."""

    def reducer_override(self, thing):
        return (getattr, (type(thing), thing.name)) if isinstance(thing, enum.Enum) else NotImplemented


def _load(path: Path) -> None:
    load(path, *_make())


def test_what_an_older_python_wrote_can_be_read(tmp_path):
    path = directory.step_directory(tmp_path, 3)
    run_distributed(_save, path)
    metadata = pickle.loads((path / ".metadata").read_bytes())
    with (path / ".metadata").open("wb") as file:
        PicklerOfPython3112(file).dump(metadata)
    assert b"getattr" in (path / ".metadata").read_bytes()
    run_distributed(_load, path)


class Attribute:
    """A way around the list of what may be read: something that an admitted name holds."""

    def __reduce__(self):
        return getattr, (torch.Size, "__subclasses__")


def test_attributes_of_what_may_be_read_may_not(tmp_path):
    path = directory.step_directory(tmp_path, 3)
    run_distributed(_save, path)
    (path / ".metadata").write_bytes(pickle.dumps(Attribute()))
    assert "builtins.getattr has no place in it" in run_distributed(_load_error, path)[0]


def _save_object(path: Path, target: Path) -> None:
    state_dict_saver.save({"model": {"weight": Touch(target)}}, checkpoint_id=path)


def test_an_entry_that_is_not_a_tensor_is_refused_and_not_run(tmp_path):
    path = directory.step_directory(tmp_path, 3)
    run_distributed(_save_object, path, tmp_path / "ran")
    assert "model.weight is not a tensor" in run_distributed(_load_error, path)[0]
    assert not (tmp_path / "ran").exists()


def test_a_damaged_file_of_tensors_is_an_error_of_the_users(tmp_path):
    path = directory.step_directory(tmp_path, 3)
    run_distributed(_save, path)
    for file in path.glob("*.distcp"):
        file.write_bytes(b"")
    assert f"{path} cannot be read" in run_distributed(_load_error, path)[0]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_the_reader_admits_what_torch_writes_for_every_dtype(tmp_path, dtype):
    tensor = torch.zeros(2, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
    state_dict_saver.save({"model": {"weight": tensor}}, checkpoint_id=tmp_path, no_dist=True)
    assert TensorReader(tmp_path).entries()["model.weight"].properties.dtype is dtype
