"""Sharded parameters as whole ones, for code that knows nothing of shards and sets initial values."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only

from distopt.parallel.materialize import unset

AT_ONCE = 2
"""Parameters that are whole at a time, where nobody holds a view of more."""

_aten = torch.ops.aten
_OVERWRITING = {
    _aten.copy_.default,
    _aten.fill_.Scalar,
    _aten.fill_.Tensor,
    _aten.normal_.default,
    _aten.uniform_.default,
    _aten.zero_.default,
}
"""Operations that read nothing of what they write to."""


@contextmanager
def whole_parameters(fresh: Iterable[Tensor]) -> Iterator[None]:
    """Within, each operation on a DTensor is one on a whole tensor on the CPU.

    The whole tensor is gathered when it is first touched. Once others are, it is cut: this rank keeps its
    part, and the rest is freed. What an operation returns is an ordinary tensor; views write through to the
    parameter for as long as they live. So random numbers come from the CPU's generator, the same ones and as
    many as without shards: all ranks have to begin with the same seed, and to do the same.

    Args:
        fresh: Tensors without a value yet, which are not gathered.
    """
    wholes = _Wholes(fresh)
    # What holds a view decides when to gather, in which all ranks take part: what is in a cycle must not go
    # on one rank sooner than on another.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with _Operations(wholes), _Assignments():
            yield
        wholes.cut()
    finally:
        if collecting:
            gc.enable()


class _Wholes:
    """Parameter → its whole tensor, of those touched last."""

    def __init__(self, fresh: Iterable[Tensor]) -> None:
        self._fresh = set(fresh)
        self._wholes: dict[DTensor, Tensor] = {}

    def of(self, parameter: DTensor, *, overwritten: bool) -> Tensor:
        """The whole tensor. One whose values do not matter, since it is `overwritten`, has any."""
        whole = self._wholes.pop(parameter, None)
        if whole is None:
            self.cut(but=AT_ONCE - 1)
            whole = self._make(parameter, overwritten=overwritten)
        self._wholes[parameter] = whole
        return whole

    @torch.no_grad()
    def cut(self, but: int = 0) -> None:
        """Cuts all `but` those that were touched last, and frees those that nobody has a view of."""
        for parameter in list(self._wholes)[: len(self._wholes) - but]:
            whole = self._wholes.pop(parameter)
            parameter.to_local().copy_(_own_part(whole, parameter))
            shape, storage = whole.shape, weakref.ref(whole.untyped_storage())
            del whole
            if (viewed := storage()) is not None:
                self._wholes[parameter] = torch.empty(0, dtype=parameter.dtype).set_(viewed, 0, shape)  # type: ignore[call-overload]

    @torch.no_grad()
    def _make(self, parameter: DTensor, *, overwritten: bool) -> Tensor:
        is_fresh = parameter in self._fresh
        self._fresh.discard(parameter)
        if overwritten or is_fresh:
            whole = torch.empty(parameter.shape, dtype=parameter.dtype)
            return whole if overwritten else whole.fill_(unset(parameter.dtype))
        # Where the mesh is: its groups need not have a backend for the CPU.
        gathered: DTensor = parameter.detach().to(parameter.device_mesh.device_type)  # type: ignore[assignment]
        return gathered.full_tensor().cpu()


def _own_part(whole: Tensor, parameter: DTensor) -> Tensor:
    """The part of `whole` that this rank has of `parameter`."""
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    part = whole
    for placement, ranks, place in zip(parameter.placements, mesh.shape, coordinate, strict=True):
        assert type(placement) in (Replicate, Shard), placement
        if isinstance(placement, Shard):
            parts: Sequence[Tensor] = part.chunk(ranks, placement.dim)
            part = parts[place] if place < len(parts) else part.narrow(placement.dim, 0, 0)
    return part


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives operations whole tensors in the place of parameters, and returns these in the place of those."""

    def __init__(self, wholes: _Wholes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._wholes = wholes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        shown: dict[int, DTensor] = {}

        def show(parameter: DTensor) -> Tensor:
            overwritten = func in _OVERWRITING and parameter is args[0]
            whole = self._wholes.of(parameter, overwritten=overwritten)
            shown[id(whole)] = parameter
            return whole

        args_, kwargs_ = tree_map_only(DTensor, show, (args, kwargs or {}))
        result = func(*args_, **kwargs_)
        return tree_map(lambda value: shown.get(id(value), value), result) if shown else result


class _Assignments(TorchFunctionMode):
    """Makes `parameter.data = value`, which is no operation, the copying that it is on a whole parameter."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == Tensor.data.__set__ and isinstance(args[0], DTensor):  # type: ignore[attr-defined]
            parameter, value = args
            if (parameter.shape, parameter.dtype) != (value.shape, value.dtype):
                raise ValueError(
                    f"a sharded parameter stays a {parameter.dtype} of shape {tuple(parameter.shape)}"
                )
            with torch.no_grad():
                return parameter.copy_(value)
        return func(*args, **kwargs or {})
