"""What `distopt doctor` says of given facts: the odd one out, also among 512 ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from distopt.launch.doctor.compare import findings, spread
from distopt.launch.doctor.examination import Examination, Measured
from distopt.launch.doctor.facts import Device, Facts, Network, WorkDir
from distopt.launch.doctor.finding import Weight
from distopt.launch.doctor.places import Places, ranges
from distopt.launch.doctor.report import write

GIB = 2**30
PER_NODE = 8


def facts(rank: int, **changes: Any) -> Facts:
    """A rank of a sound cluster with eight GPUs a node."""
    node = rank // PER_NODE
    address = f"10.0.{node // 200}.{node % 200 + 1}"
    sound = Facts(
        rank=rank,
        local_rank=rank % PER_NODE,
        local_world=PER_NODE,
        host=f"n{node:02}",
        node=str(node),
        versions={"python": "3.12.3", "torch": "2.13.0+cu130", "NCCL": "2.28.9", "driver": "580.65.06"},
        variables={"OMP_NUM_THREADS": "12"},
        unread=[],
        cores=96,
        numa=[0],
        bound_to=[0],
        limits={"nofile": 65536, "memlock": None, "core": 0},
        shm=64 * GIB,
        infiniband=["mlx5_0"],
        devices=PER_NODE,
        device=Device("NVIDIA H100 80GB HBM3", f"GPU-{rank}", 80 * GIB, 79 * GIB, 0),
        device_problem=None,
        dumps_to=None,
        network=Network({"lo": ["127.0.0.1"], "eth0": [address]}, address, address, None),
        work_dir=WorkDir("/shared/run", "/shared", "nfs4", 5000 * GIB, None),
    )
    return dataclasses.replace(sound, **changes)


def cluster(size: int, odd: dict[int, dict[str, Any]] | None = None, **found: Any) -> Examination:
    odd = odd or {}
    return Examination(size, [facts(rank, **odd.get(rank, {})) for rank in range(size)], **found)


def told(examination: Examination, workers: int = 0) -> list[tuple[str, str]]:
    """Where and what, of all that is more than a note."""
    found = findings(examination, Places(examination.everyone), workers)
    return [(finding.where, finding.text) for finding in found if finding.weight < Weight.NOTE]


def measured(size: int, slow: dict[int, float] | None = None, **first: Any) -> dict[int, Measured]:
    reduce = {"gloo": [(4096, 1e-4)], "nccl": [(4096, 3e-5), (2**28, 1e-3)]}
    ranks = {rank: Measured(1e-3 * (slow or {}).get(rank, 1), reduce) for rank in range(size)}
    ranks[0] = dataclasses.replace(ranks[0], **first)
    return ranks


def test_a_sound_cluster_has_no_finding():
    clocks = [(rank, 1e-4, 5e-5) for rank in range(8, 512, 8)]
    assert told(cluster(512, measured=measured(512, clocks=clocks))) == []


def test_of_512_ranks_the_node_with_another_torch_is_named_in_one_line():
    other = {"versions": {**facts(0).versions, "torch": "2.11.0+cu130"}}
    odd = dict.fromkeys(range(40, 48), other)
    assert told(cluster(512, odd)) == [("n05", "torch: 2.11.0+cu130; most have 2.13.0+cu130")]


def test_of_two_nodes_that_differ_the_second_is_named_and_what_rank_0_has():
    odd = {rank: {"shm": 2 * GIB} for rank in range(8, 16)}
    assert told(cluster(16, odd)) == [("n01", "/dev/shm: 2 GiB; rank 0's 64 GiB")]


def test_a_single_rank_is_named_with_its_node():
    odd = {19: {"variables": {"OMP_NUM_THREADS": "12", "NCCL_ALGO": "Ring"}}}
    assert told(cluster(32, odd)) == [("rank 19 (n02)", "NCCL_ALGO: Ring; most have unset")]


def test_many_values_of_one_thing_are_a_few_lines():
    odd = {rank: {"cores": 32 + rank} for rank in range(8, 40)}
    lines = [text for _, text in told(cluster(64, odd)) if text.startswith("cores")]
    assert lines == [*(f"cores: {32 + rank}; most have 96" for rank in (8, 9, 10)), "cores: 29 more values"]


def test_ranks_that_have_not_come_are_the_first_line():
    examination = dataclasses.replace(cluster(16), size=24)
    where, text = told(examination)[0]
    assert where == "ranks 16–23"
    assert text.startswith("has not come")


def test_a_node_that_no_other_reaches_is_named_once():
    cut_off = {rank: {16: "127.0.1.1: Connection refused"} for rank in (0, 8, 24)}
    assert told(cluster(32, cut_off=cut_off)) == [
        ("n02", "no connection from all other nodes: 127.0.1.1: Connection refused")
    ]


def test_a_node_that_reaches_no_other_is_named_once():
    cut_off = {8: dict.fromkeys((0, 16, 24), "10.0.0.1: timed out")}
    assert told(cluster(32, cut_off=cut_off)) == [
        ("n01", "no connection to all other nodes: 10.0.0.1: timed out")
    ]


def test_gloo_at_a_loopback_address_is_told_with_the_interface_to_take():
    network = Network({"lo": ["127.0.1.1"], "ib0": ["10.0.0.2"]}, "10.0.0.2", "127.0.1.1", None)
    ((where, text),) = told(cluster(16, {rank: {"network": network} for rank in range(8, 16)}))
    assert where == "n01"
    assert text.startswith("gloo listens at 127.0.1.1, which no other node can reach")
    assert text.endswith("export GLOO_SOCKET_IFNAME=ib0")


def test_two_ranks_with_one_gpu_are_named():
    odd = {9: {"device": facts(8).device}}
    assert told(cluster(16, odd)) == [("ranks 8–9 (n01)", "have one GPU, GPU-8: see CUDA_VISIBLE_DEVICES")]


def test_the_clock_that_is_odd_may_be_rank_0s():
    clocks = [(rank, 30.0, 1e-4) for rank in (8, 16, 24)]
    assert told(cluster(32, measured=measured(32, clocks=clocks))) == [
        ("n00", "its clock is 30.0 s behind the others: chronyc tracking")
    ]


def test_a_clock_within_its_uncertainty_is_not_odd():
    assert told(cluster(16, measured=measured(16, clocks=[(8, 1.5, 0.6)]))) == []


def test_a_slow_gpu_and_a_slow_link_are_named():
    links = [(8, 1e-4, 1e9), (16, 1e-4, 1e8), (24, 1e-4, 1e9)]
    assert told(cluster(32, measured=measured(32, slow={13: 1.6}, links=links))) == [
        ("rank 13 (n01)", "the same work takes 1.6 times as long as others: throttled, or shared"),
        ("n02", "its link has 0.1 GB/s, others have 1"),
    ]


def test_a_group_that_fails_is_told_by_what_each_rank_says():
    found = {**measured(16), **dict.fromkeys((8, 9), "all-reduce, nccl: DistBackendError: NCCL error")}
    assert told(cluster(16, measured=found)) == [
        ("ranks 8–9 (n01)", "does not get through all-reduce, nccl: DistBackendError: NCCL error")
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"variables": {"OMP_NUM_THREADS": "96"}}, "export OMP_NUM_THREADS=12"),
        ({"limits": {"nofile": 65536, "memlock": 65536, "core": 0}}, "ulimit -l 64 KiB: InfiniBand"),
        ({"shm": 2**26}, "/dev/shm has 64 MiB, and what needs it is data.num_workers 4 and NCCL"),
        ({"unread": ["TORCH_NCCL_TRACE_BUFER"]}, "TORCH_NCCL_TRACE_BUFER is set, and nothing in torch 2.13"),
        ({"variables": {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}}, "leaves the ranks hanging"),
        ({"variables": {"CUDA_LAUNCH_BLOCKING": "1"}}, "CUDA_LAUNCH_BLOCKING=1: the host waits"),
        ({"dumps_to": "/no/such/rank_"}, "the flight recorder cannot write /no/such/rank_"),
        ({"device_problem": "there is no GPU for local rank 7: 4 can be seen"}, "there is no GPU for"),
        ({"device": Device("H100", "GPU", 80 * GIB, 60 * GIB, 0)}, "20.0 GiB are taken already"),
        ({"numa": [0, 1], "bound_to": [1]}, "bound to the cores of another NUMA node"),
        ({"work_dir": WorkDir("/a", "/a", "nfs4", GIB // 2, None)}, "less than 1 GiB are free"),
        ({"work_dir": WorkDir("/a", "/a", "nfs4", GIB, "Read-only file system")}, "Read-only file system"),
    ],
)
def test_what_hurts_is_told_even_where_all_ranks_have_it(changes, text):
    found = told(Examination(1, [facts(0, **changes)]), workers=4)
    assert [(where, text in line) for where, line in found] == [("all", True)]


def test_ranks_are_not_apart_from_a_rank_0_that_cannot_write():
    unwritable = {"work_dir": WorkDir("/a", "/a", "nfs4", GIB * 99, "Read-only file system")}
    found = told(cluster(8, {0: unwritable}, apart=[*range(1, 8)]))
    assert not [line for _, line in found if "not the same directory" in line]
    assert [where for where, line in found if "Read-only" in line] == ["rank 0"]


def test_what_is_only_good_to_know_is_a_note():
    found = findings(
        Examination(1, [facts(0, limits={"nofile": 1024, "memlock": None, "core": None})]), Places([facts(0)])
    )
    assert {finding.weight for finding in found} == {Weight.NOTE}


def test_values_are_told_apart_by_how_many_ranks_have_them():
    assert spread({0: "a", 1: "b", 2: "b", 3: "c"}) == [("b", [1, 2]), ("a", [0]), ("c", [3])]


@pytest.mark.parametrize(
    ("ranks", "text"), [([3], "rank 3"), ([0, 1, 2, 9], "ranks 0–2, 9"), ([4, 5], "ranks 4–5")]
)
def test_ranks_in_a_row_are_a_range(ranks, text):
    assert ranges(ranks) == text


@pytest.mark.parametrize("columns", [50, 200])
def test_512_ranks_are_a_screen_of_text(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    other = {"cores": 64, "variables": {"OMP_NUM_THREADS": "4"}}
    odd = dict.fromkeys(range(40, 48), other)
    examination = cluster(512, odd, measured=measured(512, clocks=[(8, 0, 1e-4)], links=[(8, 1e-4, 1e9)]))
    places = Places(examination.everyone)
    write(examination, places, findings(examination, places))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 50
    assert "odd   n05: cores: 64; most have 96" in lines
    assert all(len(line) <= columns for line in lines[: lines.index("")])
