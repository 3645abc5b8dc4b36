"""What other tests may rely on from `tests.kit`."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.kit import RankError, run_distributed, run_torchrun

ROOT = Path(__file__).parents[1]


def _pid() -> int:
    return os.getpid()


def _sum_of_ranks() -> int:
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total)
    return int(total)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_default_group_has_exactly_the_ranks_asked_for(world: int) -> None:
    assert run_distributed(_sum_of_ranks, world=world) == [sum(range(world))] * world


def _rank_and_argument(argument: str) -> tuple[int, str]:
    return dist.get_rank(), argument


def test_results_come_back_by_rank() -> None:
    assert run_distributed(_rank_and_argument, "x") == [(0, "x"), (1, "x")]


def test_the_ranks_stay_alive_between_calls_of_any_world_size() -> None:
    two = run_distributed(_pid)
    four = run_distributed(_pid, world=4)
    assert four[:2] == two
    assert run_distributed(_pid, world=3) == four[:3]


def _torchrun_variables() -> dict[str, str]:
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    return {name: os.environ[name] for name in names}


def test_the_environment_is_that_of_torchrun() -> None:
    first, second = run_distributed(_torchrun_variables)
    assert first.pop("MASTER_PORT") == second.pop("MASTER_PORT")
    assert first == {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    assert second == {**first, "RANK": "1", "LOCAL_RANK": "1"}


def _open_a_group_by_the_environment() -> int:
    dist.destroy_process_group()
    dist.init_process_group("gloo")
    return _sum_of_ranks()


def test_a_function_may_replace_the_group_by_one_of_its_own() -> None:
    assert run_distributed(_open_a_group_by_the_environment) == [1, 1]
    assert run_distributed(_sum_of_ranks) == [1, 1]


def _where() -> tuple[str, str | None, list[str]]:
    return str(Path.cwd()), os.environ.get("DISTOPT_KIT"), sys.path


def test_the_ranks_stand_where_the_test_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTOPT_KIT", "set by the test")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_distributed(_where, world=1) == [(str(tmp_path), "set by the test", sys.path)]


def _state() -> tuple[object, ...]:
    draws = (random.random(), float(np.random.rand()), float(torch.rand(())))
    flags = (torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads())
    return (*_where(), *draws, *flags, torch.empty(()).dtype, torch.empty(()).device)


def _disorder(folder: Path) -> None:
    os.chdir(folder)
    os.environ["DISTOPT_KIT"] = "left over"
    sys.path.insert(0, "left over")
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(1)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)


def test_a_call_leaves_nothing_behind_for_the_next(tmp_path: Path) -> None:
    before = run_distributed(_state)
    run_distributed(_disorder, tmp_path)
    assert run_distributed(_state) == before


def _sharded_sum() -> float:
    model = torch.nn.Linear(4, 4)
    fully_shard(model)
    assert isinstance(model.weight, DTensor)
    return float(model.weight.full_tensor().sum())


def test_sharded_models_of_different_worlds_follow_one_another() -> None:
    sums = [run_distributed(_sharded_sum, world=world) for world in (2, 3, 2)]
    assert {value for by_rank in sums for value in by_rank} == {sums[0][0]}


def _tensor() -> torch.Tensor:
    return torch.arange(3) + dist.get_rank()


def test_tensors_come_back_by_value() -> None:
    first, second = run_distributed(_tensor)
    run_distributed(_pid)
    assert first.tolist() == [0, 1, 2]
    assert second.tolist() == [1, 2, 3]


def _second_rank_fails() -> None:
    if dist.get_rank() == 1:
        print("said before the failure")
        raise ValueError("the reason")
    dist.barrier()


def test_a_failure_shows_the_failing_rank_its_traceback_and_what_it_printed() -> None:
    with pytest.raises(RankError) as failure:
        run_distributed(_second_rank_fails)
    message = str(failure.value)
    assert message.startswith("rank 1 of 2 raised\nTraceback")
    assert 'raise ValueError("the reason")' in message
    assert "ValueError: the reason\n" in message
    assert "printed by rank 1 of 2 -----\nsaid before the failure" in message
    assert "tests/kit/" not in message.partition("----- printed")[0]


def test_after_a_failure_the_ranks_are_new_and_work() -> None:
    before = run_distributed(_pid)
    with pytest.raises(RankError, match="rank 0 of 2 was still running"):
        run_distributed(_second_rank_fails)
    assert not set(before) & set(run_distributed(_pid))
    assert run_distributed(_sum_of_ranks) == [1, 1]


def _every_rank_fails() -> None:
    raise ValueError(f"reason of rank {dist.get_rank()}")


def test_when_several_ranks_fail_each_is_heard() -> None:
    with pytest.raises(RankError, match=r"(?s)(?=.*reason of rank 0)(?=.*reason of rank 1)"):
        run_distributed(_every_rank_fails)


def _compare() -> None:
    value = [1, 2]
    assert value == [1, 3]


def test_an_assertion_on_a_rank_shows_the_values() -> None:
    with pytest.raises(RankError, match=r"AssertionError: assert \[1, 2\] == \[1, 3\]"):
        run_distributed(_compare, world=1)


def _skip() -> None:
    pytest.skip("not on this machine")


def test_a_skip_on_the_ranks_skips_the_test_and_keeps_the_ranks() -> None:
    before = run_distributed(_pid)
    with pytest.raises(pytest.skip.Exception, match="not on this machine"):
        run_distributed(_skip)
    assert run_distributed(_pid) == before


def _die(how: str) -> None:
    if dist.get_rank() == 1:
        os._exit(3) if how == "exit" else os.kill(os.getpid(), signal.SIGSEGV)
    dist.barrier()


@pytest.mark.parametrize(
    ("how", "said"), [("exit", "exited with status 3"), ("crash", r"died of SIGSEGV(.|\n)*in _die")]
)
def test_the_death_of_a_rank_is_a_failure(how: str, said: str) -> None:
    with pytest.raises(RankError, match=f"rank 1 of 2 {said}"):
        run_distributed(_die, how)


def _exit() -> None:
    raise SystemExit(2)


def test_an_exit_on_a_rank_is_a_failure() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 0 of 1 raised.*SystemExit: 2"):
        run_distributed(_exit, world=1)


def _hang_in_a_collective() -> None:
    if dist.get_rank() == 0:
        dist.barrier()
    else:
        signal.pause()


def test_a_timeout_shows_where_each_rank_hangs() -> None:
    run_distributed(_pid)  # so that the time is not that of the ranks' start
    with pytest.raises(RankError) as failure:
        run_distributed(_hang_in_a_collective, timeout=2)
    first, second = str(failure.value).split("rank 1 of 2 was still running after 2 s")
    assert first.startswith("rank 0 of 2 was still running after 2 s")
    assert "in barrier" in first
    assert "in _hang_in_a_collective" in second


def test_what_cannot_be_sent_is_an_error_at_once() -> None:
    before = run_distributed(_pid)
    with pytest.raises((AttributeError, TypeError), match=r"lambda|local"):
        run_distributed(lambda: None)
    assert run_distributed(_pid) == before


@pytest.mark.slow
def test_pytest_shows_the_test_and_the_rank_that_failed(tmp_path: Path) -> None:
    """In a test module outside any package, run by its node id."""
    module = tmp_path / "test_elsewhere.py"
    module.write_text(
        textwrap.dedent("""
            from tests.kit import run_distributed

            def _body():
                assert 1 + 1 == 3

            def test_it():
                run_distributed(_body)
        """)
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{module}::test_it"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert ">       run_distributed(_body)" in ran.stdout
    assert "rank 0 of 2 raised" in ran.stdout
    assert "assert (1 + 1) == 3" in ran.stdout
    assert "def _hear" not in ran.stdout


def _print_the_pids_then_hang() -> None:
    """Not a test: the program that the next one kills."""
    print(*run_distributed(_pid), flush=True)
    run_distributed(_tell_and_hang)


def _tell_and_hang() -> None:
    Path("hanging").write_text("now")
    _hang_in_a_collective()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open")
def test_no_rank_survives_a_killed_pytest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hanging")
    hanging = os.open(tmp_path / "hanging", os.O_RDWR)
    program = "from tests import test_kit; test_kit._print_the_pids_then_hang()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        ranks = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(ranks) == 2
        assert select.select([hanging], [], [], 60)[0]
        parent.kill()
    for rank in ranks:
        assert select.select([rank], [], [], 30)[0]
        os.close(rank)
    os.close(hanging)


@pytest.mark.slow
def test_run_torchrun_runs_the_trainer_on_every_worker(tmp_path: Path) -> None:
    ran = run_torchrun(["--version"], cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "distopt" in ran.stdout
