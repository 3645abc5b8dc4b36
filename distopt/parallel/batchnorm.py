"""BatchNorm over the samples of all ranks, on the CPU too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distopt.errors import ConfigError


def sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Makes every BatchNorm of a model one over the samples of all ranks; to be called before wrapping.

    Parameters and buffers stay the objects they are, under the names they have.

    Args:
        model: Changed in place.
        device: On which it is going to be trained.

    Returns:
        `model`, or what is to be used in its place where it is a BatchNorm itself.

    Raises:
        ConfigError: A subclass of BatchNorm computes something else.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module).forward not in _KNOWN_FORWARDS:
            cls = type(module).__name__
            problem = f"{name or 'the model'} is a {cls}, with a forward of its own that this would replace"
            raise ConfigError(
                "sync_batchnorm", problem, given=True, allowed="false, or torch's own BatchNorm"
            )
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return, no-untyped-call]
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm
    return model


class SyncBatchNorm(_BatchNorm):
    """What torch.nn.SyncBatchNorm is, which refuses tensors on the CPU.

    Ranks may have different numbers of samples. Parameters' gradients are this rank's share, as DDP and FSDP
    expect; the input's are those of the sum of all ranks' losses.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        self._check_input_dim(input)
        x = input if input.dtype == torch.float64 else input.float()
        mean, variance, count = _statistics(x)
        self._track(mean, variance * (count / (count - 1)))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        normalized = (x - _spread(mean, x)) * _spread(scale, x)
        if self.bias is not None:
            normalized = normalized + _spread(self.bias, x)
        return normalized.to(input.dtype)

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(variance.to(self.running_var), momentum)


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and biased variance per channel (C,) over all ranks, and the number of values behind each."""
    dims = [dim for dim in range(x.ndim) if dim != 1]
    count = x.numel() // x.shape[1]
    mean = x.sum(dims) / max(count, 1)
    deviation = (x - _spread(mean, x)).square().sum(dims)
    own = torch.cat([mean, deviation, mean.new_tensor([count])])
    gathered = _Gather.apply(own)  # type: ignore[no-untyped-call]
    means, deviations, counts = gathered.split([len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    # Each rank's squares are around its own mean: sums of plain squares would cancel out where it is large.
    variance = (deviations + counts * (means - mean).square()).sum(0) / total
    return mean, variance, total


def _spread(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(C,) → (C, 1, …), to stand against x of shape (N, C, …)."""
    return values.view(-1, *[1] * (x.ndim - 2))


class _Gather(torch.autograd.Function):
    """Stacks the tensors of all ranks. The gradient is that of the sum of all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]


_KNOWN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm.forward)
