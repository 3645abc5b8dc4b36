"""What is told where a device's memory runs out: the largest tensors that are alive, and what they are."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distopt import names
from distopt.callbacks import Run

_SHOWN: Final = 10
"""How many tensors of each kind are listed."""
_HISTORY: Final = 100_000
"""How many allocations the recorder keeps, of some KB each in the host's memory."""


@contextmanager
def explained(run: Run) -> Iterator[None]:
    """Within it, an OutOfMemoryError is told with the largest tensors alive and, on a GPU, a snapshot's path.

    Args:
        run: As far as it has come: it may have no optimizer yet.
    """
    if run.device.type == "cuda" and run.config.profile.memory_history:
        torch.cuda.memory._record_memory_history(max_entries=_HISTORY, stacks="python")
    try:
        yield
    except torch.OutOfMemoryError as error:
        # Its traceback keeps the frames, and so what was alive when it was raised.
        lines = [f"on rank {run.world.rank}, {run.device}"]
        for tell in (_listing, _snapshot) if run.device.type == "cuda" else (_listing,):
            try:
                lines += tell(run)
            except Exception as another:  # what has failed first is to be told
                lines.append(f"{type(another).__name__}: {another}")
        error.add_note("\n  ".join(lines))
        raise


def _listing(run: Run) -> list[str]:
    named = dict(_named(run))
    known = {_storage(tensor) for tensor in named.values()}
    others = _others(run.device, known)
    by_shape: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for tensor in others:
        by_shape[_shape(tensor)] += tensor.untyped_storage().nbytes()
        counts[_shape(tensor)] += 1
    of_named = {f"{name}  {_shape(tensor)}": tensor.nbytes for name, tensor in named.items()}
    of_others = {f"{counts[shape]} × {shape}": size for shape, size in by_shape.items()}
    lines = _largest("parameters, gradients, averages and the optimizer's state", of_named)
    lines += _largest("other tensors", of_others)
    if run.device.type == "cuda":
        allocated = torch.cuda.memory_allocated(run.device)
        rest = allocated - sum(of_named.values()) - sum(of_others.values())
        lines += [
            f"{_size(max(rest, 0))} is kept for the backward alone (activations), or by libraries",
            f"{_size(allocated)} is allocated, {_size(torch.cuda.memory_reserved(run.device))} reserved,"
            f" {_size(torch.cuda.mem_get_info(run.device)[1])} there",
        ]
    return lines


def _named(run: Run) -> Iterator[tuple[str, Tensor]]:
    """This rank's part of what has a name, each once: `head.weight`, `head.weight.grad`, `….exp_avg`."""
    seen: set[tuple[int, int]] = set()
    for name, tensor in _tensors(run):
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        place = (local.data_ptr(), local.nbytes)
        if local.device == run.device and local.nbytes and place not in seen:
            seen.add(place)
            yield name, local


def _tensors(run: Run) -> Iterator[tuple[str, Tensor]]:
    optimizer: torch.optim.Optimizer | None = getattr(run, "optimizer", None)
    stepped = set()
    for group in optimizer.param_groups if optimizer else ():
        for fqn, parameter in zip(group["param_names"], group["params"], strict=True):
            stepped.add(fqn)
            yield fqn, parameter
            if parameter.grad is not None:
                yield f"{fqn}.grad", parameter.grad
            state: dict[str, Any] = optimizer.state.get(parameter, {}) if optimizer else {}
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"{fqn}.{key}", value
    ema = getattr(run, "ema", None)
    for fqn, average in ema.averages.items() if ema else ():
        yield f"{fqn}.ema", average
    walk = names.visits(run.model)
    for fqn, parameter in names.live_parameters(walk).items():
        # FSDP puts what it has gathered in the place of the shards, and takes it away again.
        yield f"{fqn} (gathered)" if fqn in stepped else fqn, parameter
    for visit in walk:
        for name, buffer in visit.module._buffers.items():
            if buffer is not None:
                yield visit.prefix + name, buffer


def _others(device: torch.device, known: set[int]) -> list[Tensor]:
    """What else Python holds on a device: of each storage the largest tensor."""
    found: dict[int, Tensor] = {}
    for tensor in gc.get_objects():
        # Of other classes some have no storage, and some raise when they are looked at.
        if (
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.device == device
            and tensor.layout == torch.strided
        ):
            storage = _storage(tensor)
            if storage not in known and tensor.nbytes > (found[storage].nbytes if storage in found else 0):
                found[storage] = tensor
    return list(found.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _largest(of_what: str, sizes: dict[str, int]) -> list[str]:
    if not sizes:
        return []
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)
    lines = [f"{_size(sum(sizes.values()))} in {of_what}"]
    lines += [f"  {_size(sizes[name])}  {name}" for name in largest[:_SHOWN]]
    return lines + ([f"  and {len(largest) - _SHOWN} more"] if len(largest) > _SHOWN else [])


def _size(size: int) -> str:
    return f"{size / 2**30:9.3f} GiB"


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _snapshot(run: Run) -> list[str]:
    path = run.config.work_dir / "traces" / f"out_of_memory.rank{run.world.rank}.pickle"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]
    return [f"snapshot: {path}; open it at pytorch.org/memory_viz (see profile.memory_history)"]
