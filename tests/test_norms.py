"""Norms of sharded gradients, and clipping by them: what torch's own does on one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from distopt import build_optimizer, parallel
from distopt.config import StrategyConfig
from distopt.norms import GroupNorms, clip_by_norm, clip_by_value, divisor, local_gradients, total_norm
from tests.kit import run_distributed

CPU = torch.device("cpu")
LAYOUTS = {
    "single": (1, {"type": "single"}),
    "ddp": (2, {"type": "ddp"}),
    "fsdp": (2, {"type": "fsdp"}),
    "offloaded": (2, {"type": "fsdp", "cpu_offload": True}),
    "fsdp with empty shards": (4, {"type": "fsdp"}),
    "hsdp": (4, {"type": "hsdp", "shard_size": 2}),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


class Net(nn.Module):
    """With a frozen matrix, two that are tied, and vectors of fewer elements than ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(5, 5)
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 1)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.frozen(x)).tanh()).tanh())


def with_gradients(strategy: dict | None) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The same gradient on every rank, in the groups of an optimizer; without a strategy, on one process."""
    net = Net()
    wrapped = parallel.wrap(net, StrategyConfig(**strategy), CPU) if strategy else net
    keys = {"head": {"lr_mult": 0.1}}
    cfg = {"type": "SGD", "lr": 1.0, "paramwise_cfg": {"bypass_duplicate": True, "custom_keys": keys}}
    groups = build_optimizer(wrapped, cfg).param_groups
    wrapped(torch.randn(8, 5, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    assert [group["name"] for group in groups] == ["default", "head"]
    return net, groups


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad) for name, p in net.named_parameters() if p.grad is not None}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clipped(strategy: dict, max_norm: float, per_group: bool) -> tuple[list[float], dict[str, Tensor]]:
    net, groups = with_gradients(strategy)
    norms = GroupNorms(groups).of_gradients()
    clip_by_norm(groups, norms if per_group else total_norm(norms), max_norm)
    return [*norms.tolist(), total_norm(norms).item()], gradients(net)


def clipped_by_torch(max_norm: float, per_group: bool) -> tuple[list[float], dict[str, Tensor]]:
    net, groups = with_gradients(None)
    of_groups = [nn.utils.get_total_norm([p.grad for p in group["params"]]).item() for group in groups]
    for part in groups if per_group else [{"params": net.parameters()}]:
        nn.utils.clip_grad_norm_(part["params"], max_norm)
    return [*of_groups, torch.tensor(of_groups).norm().item()], gradients(net)


def assert_clips_as_torch(layout: str, max_norm: float, per_group: bool) -> None:
    world, strategy = LAYOUTS[layout]
    norms, expected = clipped_by_torch(max_norm, per_group)
    for found, grads in run_distributed(clipped, strategy, max_norm, per_group, world=world):
        assert found == pytest.approx(norms, rel=1e-5)
        assert grads.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(grads[name], value, rtol=1e-5, atol=1e-8)


@layouts
def test_the_whole_gradient_is_clipped_as_by_torch_on_one_process(layout):
    assert_clips_as_torch(layout, max_norm=0.1, per_group=False)


@layouts
def test_each_group_is_clipped_as_by_torch_on_one_process(layout):
    norms, _ = clipped_by_torch(1.0, per_group=True)
    # Between the two, so that one group is clipped and the other is left.
    assert_clips_as_torch(layout, max_norm=sum(norms[:2]) / 2, per_group=True)


def test_a_gradient_within_the_norm_is_left_as_it_is():
    (_, before), (_, after) = (clipped({"type": "single"}, max_norm, False) for max_norm in (1e3, 1e6))
    assert all(torch.equal(before[name], after[name]) for name in before)


def layouts_beside_one_another() -> float:
    """The same vector, sharded in several ways, whole, and as terms of a sum."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    value = torch.arange(6.0).view(2, 3)
    ways = [[Shard(0), Shard(1)], [Replicate(), Shard(1)], [Shard(0), Replicate()], [Replicate()] * 2]
    grads: list[Tensor] = [distribute_tensor(value, mesh, way) for way in ways]
    grads += [DTensor.from_local(value / 4, mesh, [Partial(), Partial()]), value]
    params = [nn.Parameter(torch.zeros(2, 3)) for _ in grads]
    for i, grad in enumerate(grads):
        if isinstance(grad, DTensor):
            params[i] = nn.Parameter(distribute_tensor(torch.zeros(2, 3), mesh, [Replicate()] * 2))
        params[i].grad = grad
    norms = GroupNorms([{"params": params[i::2]} for i in range(2)]).of_gradients()
    return (norms.square().sum() / value.square().sum()).item()


def test_each_gradient_counts_once_whatever_its_layout():
    assert run_distributed(layouts_beside_one_another, world=4) == pytest.approx([6.0] * 4)


def without_gradients_on_a_rank(rank: int | None) -> list[float]:
    net, groups = with_gradients({"type": "fsdp"})
    for p in net.parameters():
        p.grad = torch.ones_like(p) if rank is not None and dist.get_rank() != rank else None
    norms = GroupNorms(groups).of_gradients()
    clip_by_norm(groups, total_norm(norms), 1.0)
    clip_by_value(groups, 1.0)
    return norms.tolist()


def test_without_gradients_the_norm_is_0():
    assert run_distributed(without_gradients_on_a_rank, None) == [[0.0, 0.0]] * 2


def test_ranks_without_gradients_take_part():
    found = run_distributed(without_gradients_on_a_rank, 1)
    assert found[0] == found[1]
    assert all(norm > 0 for norm in found[0])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_ends_as_with_torch(value):
    results = []
    for ours in (True, False):
        params = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
        params[0].grad, params[1].grad = torch.ones(3), torch.tensor([1.0, value, -1.0])
        if ours:
            groups = [{"params": params}]
            norms = GroupNorms(groups).of_gradients()
            clip_by_norm(groups, total_norm(norms), 1.0)
            norm = total_norm(norms)
        else:
            norm = nn.utils.clip_grad_norm_(params, 1.0)
        results.append([norm, *(p.grad for p in params)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_the_norm_is_no_less_exact_than_fp32(dtype):
    param = nn.Parameter(torch.zeros(1000, dtype=dtype))
    param.grad = torch.full_like(param, 10000.0)
    norms = GroupNorms([{"params": [param]}]).of_gradients()
    assert norms.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        norms, param.grad.to(torch.complex128).norm()[None], check_dtype=False, rtol=1e-3, atol=0
    )


def test_half_precision_is_measured_in_full_beside_other_types():
    params = [nn.Parameter(torch.zeros(1000, dtype=dtype)) for dtype in (torch.float16, torch.float64)]
    for param in params:
        param.grad = torch.full_like(param, 3000)
    norms = GroupNorms([{"params": [param]} for param in params]).of_gradients()
    assert norms.tolist() == pytest.approx([3000 * 1000**0.5] * 2)


def test_the_norm_of_many_parameters_is_exact():
    param = nn.Parameter(torch.rand(2**24, generator=torch.Generator().manual_seed(0)))
    norms = GroupNorms([{"params": [param]}])
    of_params, of_updates = norms.of_updates(norms.copied())
    assert of_params.item() == pytest.approx(param.double().norm().item(), rel=5e-5)
    assert of_updates.item() == 0


def test_each_element_is_cut():
    _, groups = with_gradients(None)
    before = [grad.clone() for group in groups for grad in local_gradients(group["params"])]
    clip_by_value(groups, 0.01)
    after = [grad for group in groups for grad in local_gradients(group["params"])]
    for mine, was in zip(after, before, strict=True):
        assert torch.equal(mine, was.clamp(-0.01, 0.01))


@pytest.mark.parametrize(("norm", "expected"), [(0.5, None), (4.0, 2.0)])
def test_a_fused_optimizer_divides_by_what_clipping_would_multiply_with(norm, expected):
    found = divisor(torch.tensor(norm), 2.0)
    assert found is None if expected is None else found.item() == pytest.approx(expected)
