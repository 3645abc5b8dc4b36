"""Agreement between ranks, and one packed collective."""

import pytest
import torch
import torch.distributed as dist

from distopt import comm
from tests.kit import run_distributed


def _sum() -> list[float]:
    return comm.sum_over_ranks([dist.get_rank() + 1, torch.tensor(0.5)], torch.device("cpu"))


def test_sums_are_over_all_ranks_on_all_ranks():
    assert run_distributed(_sum) == [[3.0, 1.0], [3.0, 1.0]]


def _agree(odd_rank: int | None) -> str:
    plan = "b" if dist.get_rank() == odd_rank else "a"
    try:
        comm.agree({"resume": "step 3", "plan": plan})
    except RuntimeError as error:
        return str(error)
    return "agreed"


def test_ranks_with_the_same_facts_agree():
    assert run_distributed(_agree, None) == ["agreed"] * 2


def test_every_rank_is_told_what_differs_and_where():
    assert run_distributed(_agree, 1) == ["the ranks do not agree on the plan (rank 0: a, rank 1: b)"] * 2


def test_one_process_alone_is_a_world_of_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = comm.World.from_env()
    assert (world.rank, world.size, world.launched) == (0, 1, False)


@pytest.mark.slow
def test_a_process_group_needs_no_launcher(tmp_path):
    import subprocess
    import sys

    code = (
        "import torch, torch.distributed as dist\n"
        "from distopt import comm\n"
        "with comm.process_group(comm.World.from_env()):\n"
        "    print(comm.sum_over_ranks([2.0], torch.device('cpu')), dist.get_world_size())\n"
        "print(dist.is_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[2.0] 1", "False"]


def _differing(numbers: list[list[int]]) -> list[list[int]] | None:
    return comm.differing(numbers[dist.get_rank()])


def test_numbers_that_are_the_same_do_not_differ():
    assert run_distributed(_differing, [[3, -4], [3, -4]]) == [None, None]


@pytest.mark.parametrize("numbers", [[[3, 4], [3, 5]], [[3, 4], [4, 3]], [[-1, 0], [1, 0]]])
def test_numbers_that_differ_are_told_of_every_rank(numbers):
    assert run_distributed(_differing, numbers) == [numbers, numbers]


def test_a_process_without_a_group_differs_from_nobody():
    assert comm.differing([1, 2]) is None
