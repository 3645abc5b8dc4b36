"""Norms of what may be sharded, from each rank's shards, by one small collective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate

Groups = Sequence[Mapping[str, Any]]
"""`param_groups` of an optimizer."""


@torch.no_grad()
def group_norms(groups: Groups) -> Tensor:
    """The norm of each group's gradient over all ranks, on the gradients' device; every rank calls it.

    Squares are added up over the ranks among which a gradient is sharded, all groups in one collective (one
    more for each further way of sharding); what every rank has whole counts once. The host waits for nothing.

    Returns:
        Of shape (groups,); 0 where no parameter of a group has a gradient.
    """
    return _norms_by_group(groups, [[p.grad for group in groups for p in group["params"]]])[0]


@torch.no_grad()
def copied(groups: Groups) -> list[Tensor]:
    """This rank's part of all parameters, as they are now."""
    return list(torch._foreach_clone(_local_parameters(groups)))


@torch.no_grad()
def norms_and_updates(groups: Groups, before: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The norm of each group's parameters before a step, and of what the step added; every rank calls it.

    Both in one pass and one collective, as `group_norms`.

    Args:
        groups: After the step.
        before: From `copied`; used up.

    Returns:
        Two of shape (groups,).
    """
    updates = torch._foreach_sub(_local_parameters(groups), before)
    found = _norms_by_group(groups, [before, list(updates)])
    return found[0], found[1]


def _local_parameters(groups: Groups) -> list[Tensor]:
    params = (p for group in groups for p in group["params"])
    return [p.to_local() if isinstance(p, DTensor) else p for p in params]


def _norms_by_group(groups: Groups, rows: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Norms of tensors that belong to parameters, or are this rank's part of such.

    Args:
        groups: Whose parameters they belong to.
        rows: Each has one for each parameter, in the order of the groups.

    Returns:
        Of shape (rows, groups).
    """
    owners = [(i, param) for i, group in enumerate(groups) for param in group["params"]]
    by_ranks: dict[tuple[dist.ProcessGroup, ...], list[list[Tensor]]] = {}
    by_layout: dict[tuple[DeviceMesh, tuple[Placement, ...]] | None, list[list[Tensor]]] = {}
    for row, tensors in enumerate(rows):
        for (i, param), tensor in zip(owners, tensors, strict=True):
            # Without a gradient here, too: other ranks may have one, and the collectives are to be the same.
            like = tensor if isinstance(tensor, DTensor) else param
            layout = (like.device_mesh, like.placements) if isinstance(like, DTensor) else None
            if layout not in by_layout:
                ranks = _sharded_among(*layout) if layout else ()
                by_layout[layout] = by_ranks.setdefault(ranks, [[] for _ in range(len(rows) * len(groups))])
            if tensor is not None:
                local = _summed(tensor).to_local() if isinstance(tensor, DTensor) else tensor
                by_layout[layout][row * len(groups) + i].append(local)
    cells = [cell for by_cell in by_ranks.values() for cell in by_cell]
    norms = _norms([tensor for cell in cells for tensor in cell], like=groups[0]["params"][0])
    of_cells = torch._foreach_norm(norms.split_with_sizes([len(cell) for cell in cells]))
    squares = torch.stack(of_cells).square().view(len(by_ranks), len(rows), len(groups))
    for of_ranks, ranks in zip(squares, by_ranks, strict=True):
        for process_group in ranks:
            dist.all_reduce(of_ranks, group=process_group)
    return squares.sum(0).sqrt()


def total_norm(norms: Tensor) -> Tensor:
    """That over all groups, from theirs."""
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm


@torch.no_grad()
def non_finite(groups: Groups, *, gradients: bool = False) -> dict[str, list[str]]:
    """Group → FQNs of its parameters that hold, on any rank, what is no finite number; every rank calls it.

    One pass over this rank's parameters, or their gradients, and one small collective.
    """
    params = [p for group in groups for p in group["params"]]
    names = [(group["name"], fqn) for group in groups for fqn in group["param_names"]]
    values = [p.grad if gradients else p for p in params]
    nothing = torch.zeros((), device=params[0].device)
    local = [nothing if v is None else v.to_local() if isinstance(v, DTensor) else v for v in values]
    # The sums of sizes, and not of squares, which may be too large for a number.
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(local, 1)])
    bad = (~norms.isfinite()).to(torch.int32)
    dist.all_reduce(bad, dist.ReduceOp.MAX)
    found: dict[str, list[str]] = {}
    for (group, fqn), is_bad in zip(names, bad.tolist(), strict=True):
        if is_bad:
            found.setdefault(group, []).append(fqn)
    return found


@torch.no_grad()
def local_gradients(params: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of the gradients that there are: what is done to it is done to them."""
    grads = [p.grad for p in params]
    return [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads if grad is not None]


@torch.no_grad()
def clip_by_norm(groups: Groups, norms: Tensor, max_norm: float) -> None:
    """Scales gradients down in place, as `torch.nn.utils.clip_grad_norm_` does.

    Args:
        groups: Whose gradients are scaled.
        norms: Of shape (groups,), to clip each group by itself, or (), to clip all together. An infinite one
            makes gradients 0, one that is no number makes them none.
        max_norm: The greatest that a norm may have.
    """
    scales = (max_norm / (norms + 1e-6)).clamp(max=1)
    if scales.device.type == "cpu" and bool((scales == 1).all()):  # elsewhere the host would have to wait
        return
    gradients = [local_gradients(group["params"]) for group in groups]
    if not norms.ndim:
        gradients, scales = [[grad for of_group in gradients for grad in of_group]], scales[None]
    for of_group, scale in zip(gradients, scales, strict=True):
        if of_group:
            torch._foreach_mul_(of_group, scale)


@torch.no_grad()
def divisor(norm: Tensor, max_norm: float) -> Tensor | None:
    """A scalar to divide gradients of this norm by, in place of `clip_by_norm`; None where it is 1.

    On a GPU it is one in any case, for the host would have to wait.
    """
    found = ((norm + 1e-6) / max_norm).clamp(min=1)
    return None if found.device.type == "cpu" and found.item() == 1 else found


@torch.no_grad()
def clip_by_value(groups: Groups, max_value: float) -> None:
    """Cuts each element of the gradients, in place, to between -`max_value` and `max_value`."""
    gradients = [grad for group in groups for grad in local_gradients(group["params"])]
    if gradients:
        torch._foreach_clamp_min_(gradients, -max_value)
        torch._foreach_clamp_max_(gradients, max_value)


def _sharded_among(mesh: DeviceMesh, placements: tuple[Placement, ...]) -> tuple[dist.ProcessGroup, ...]:
    """Over which squares of shards add up to those of the whole."""
    dims = (dim for dim, placement in enumerate(placements) if not _is_whole(placement))
    return tuple(mesh.get_group(dim) for dim in dims)


def _is_whole(placement: Placement) -> bool:
    """Whether a rank has, or after `_summed` will have, all there is."""
    return placement.is_replicate() or placement.is_partial()


def _summed(grad: DTensor) -> DTensor:
    """The terms of a sum over ranks are added up first: the square of a sum is not the sum of squares."""
    if any(placement.is_partial() for placement in grad.placements):
        return grad.redistribute(placements=[Replicate() if _is_whole(p) else p for p in grad.placements])
    return grad


def _norms(tensors: list[Tensor], like: Tensor) -> Tensor:
    """One of each tensor, of half precision in fp32."""
    if not tensors:
        return torch.zeros(0, device=like.device)
    real = {tensor.dtype for tensor in tensors} <= {torch.float32, torch.float16, torch.bfloat16}
    return torch.stack(torch._foreach_norm(tensors, 2, torch.float32 if real else None))
