"""Norms of what may be sharded, from each rank's shards, by one small collective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

Groups = Sequence[Mapping[str, Any]]
"""`param_groups` of an optimizer."""
Tensors = tuple[Tensor, ...] | list[Tensor]

_BUCKET: Final = 2**20
"""Elements: small tensors are copied and measured together, and large ones in parts of so many, since a norm
in fp32 of very many at once is inexact on the CPU: by 0.0005 for 16 million."""


class GroupNorms:
    """Norms of what belongs to each group's parameters, over all ranks, which all ask for the same ones.

    Squares are added up over the ranks among which a parameter is sharded, all groups in one collective (one
    more for each further way of sharding); what every rank has whole counts once. The host waits for nothing.

    Args:
        groups: Whose parameters stay the same ones.
    """

    def __init__(self, groups: Groups) -> None:
        by_ranks: dict[tuple[dist.ProcessGroup, ...], list[list[Tensor]]] = {}
        for i, group in enumerate(groups):
            for param in group["params"]:
                cells = by_ranks.setdefault(_sharded_among(param), [[] for _ in groups])
                cells[i].append(param)
        cells = [cell for cells in by_ranks.values() for cell in cells]
        self._among = list(by_ranks)
        self._groups = len(groups)
        self._params = [param for cell in cells for param in cell]
        self._counts = [len(cell) for cell in cells]
        self._buckets = [_buckets(cell) for cell in cells]
        self._nothing = torch.zeros(0, device=self._params[0].device)
        dtypes = {param.dtype for param in self._params}
        is_real = not any(dtype.is_complex for dtype in dtypes)
        self._dtype = reduce(torch.promote_types, dtypes, torch.float32) if is_real else None

    def of_gradients(self) -> Tensor:
        """Of shape (groups,), on the gradients' device; 0 where no parameter of a group has a gradient.

        The collectives are the same where a rank has no gradient, since others may have one.
        """
        gradients = [self._nothing if (grad := p.grad) is None else _laid_out(grad, p) for p in self._params]
        return self._over_ranks(self._norms(gradients), self._counts)[0]

    @torch.no_grad()
    def copied(self) -> list[list[Tensor]]:
        """This rank's part of all parameters as they are now, for `of_updates`."""
        return [[_flat(bucket) for bucket in buckets] for buckets in self._buckets]

    @torch.no_grad()
    def of_updates(self, before: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        """Of the parameters before a step, and of what the step has added: two of shape (groups,).

        One small collective for both, and the memory of no second copy.

        Args:
            before: From `copied`.
        """
        of_params, of_updates = list[Tensor](), list[Tensor]()
        counts = []
        for buckets, were in zip(self._buckets, before, strict=True):
            first = len(of_params)
            for bucket, was in zip(buckets, were, strict=True):
                of_params += self._norms(torch.split(was, _BUCKET))
                of_updates += self._norms(torch.split(_flat(bucket).sub_(was), _BUCKET))
            counts.append(len(of_params) - first)
        found = self._over_ranks([*of_params, *of_updates], counts * 2)
        return found[0], found[1]

    def _norms(self, tensors: Tensors) -> Tensors:
        """One of each; of half precision, where there are no complex ones beside it, in fp32."""
        return torch._foreach_norm(tensors, 2, self._dtype)

    def _over_ranks(self, norms: Tensors, counts: Sequence[int]) -> Tensor:
        """Those of groups, from those of parts.

        Args:
            norms: This rank's, by row (any number of them), by ranks among which a part is sharded, by group.
            counts: How many belong together, in the same order.

        Returns:
            Of shape (rows, groups).
        """
        of_cells = torch.stack(torch._foreach_norm(torch.stack(norms).split_with_sizes(counts)))
        of_cells = of_cells.view(-1, len(self._among), self._groups)
        if not any(self._among):
            return of_cells[:, 0]
        squares = of_cells.square().transpose(0, 1).contiguous()
        for of_ranks, ranks in zip(squares, self._among, strict=True):
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


def divisor(norm: Tensor, max_norm: float) -> Tensor | None:
    """A scalar to divide gradients of this norm by, in place of `clip_by_norm`; None where it is 1.

    On a GPU it is one in any case, for the host would have to wait.
    """
    if norm.device.type == "cpu" and norm.item() + 1e-6 <= max_norm:
        return None
    return ((norm + 1e-6) / max_norm).clamp(min=1)


@torch.no_grad()
def clip_by_value(groups: Groups, max_value: float) -> None:
    """Cuts each element of the gradients, in place, to between -`max_value` and `max_value`."""
    gradients = [grad for group in groups for grad in local_gradients(group["params"])]
    if gradients:
        torch._foreach_clamp_min_(gradients, -max_value)
        torch._foreach_clamp_max_(gradients, max_value)


def _sharded_among(param: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """Over which squares of shards add up to those of the whole."""
    if not isinstance(param, DTensor):
        return ()
    dims = (dim for dim, placement in enumerate(param.placements) if not placement.is_replicate())
    return tuple(param.device_mesh.get_group(dim) for dim in dims)


def _buckets(params: Sequence[Tensor]) -> list[list[Tensor]]:
    """Small ones together, in their order."""
    buckets: list[list[Tensor]] = []
    space = 0
    for param in params:
        size = _local(param).numel()
        if not buckets or size > space:
            buckets.append([])
            space = _BUCKET
        buckets[-1].append(param)
        space -= size
    return buckets


def _flat(params: Sequence[Tensor]) -> Tensor:
    """A copy of this rank's part of them, of one dimension."""
    return torch.cat([_local(param).reshape(-1) for param in params])


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _laid_out(grad: Tensor, param: Tensor) -> Tensor:
    """This rank's part of a gradient, that is laid out as its parameter is.

    The terms of a sum over ranks are so added up first: the square of a sum is not the sum of squares.
    """
    if not isinstance(grad, DTensor):
        return grad
    if isinstance(param, DTensor) and grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    return grad.to_local()
