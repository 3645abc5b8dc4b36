"""Sharded parameters seen as whole ones, a few at a time, by the code that sets their initial values."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_AT_ONCE = 4
"""So many whole parameters are kept; init code goes from one to the next."""


class WholeParameters(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """For a `with` block in which all ranks run the same code: each DTensor is a whole tensor to it.

    What the code does to a parameter (views of it, `.data`, any operator) is done to a whole tensor on the
    CPU, and so it draws the same random numbers as on one process; each rank then keeps its shard. To look
    again at a parameter that was let go, it is gathered.

    Args:
        fresh: The DTensors that have no values yet.
        unset: What the elements of such a tensor are until someone sets them.
        is_unset: Whether some of them still are.

    Attributes:
        unset: After the block, those of the fresh ones that are not wholly set; the same on every rank.
    """

    def __init__(
        self, fresh: Collection[Tensor], unset: Callable[[Tensor], Any], is_unset: Callable[[Tensor], bool]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unset = set(fresh)
        self._fresh = set(fresh)
        self._value_of, self._is_unset = unset, is_unset
        self._whole: dict[Tensor, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        seen: dict[int, Tensor] = {}

        def whole(parameter: Tensor) -> Tensor:
            tensor = self._whole_of(parameter)
            seen[id(tensor)] = parameter
            return tensor

        args, kwargs = tree_map_only(DTensor, whole, (args, kwargs or {}))
        out = func(*args, **kwargs)
        self._let_go(but=set(seen.values()))
        # An operator in place returns what it was called on.
        return tree_map_only(Tensor, lambda tensor: seen.get(id(tensor), tensor), out)

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for parameter in list(self._whole):
            self._keep_shard(parameter)

    def _whole_of(self, parameter: Tensor) -> Tensor:
        tensor = self._whole.pop(parameter, None)
        if tensor is None:
            assert isinstance(parameter, DTensor)
            if parameter in self._fresh:
                tensor = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                tensor.fill_(self._value_of(tensor))
            else:
                tensor = parameter.full_tensor().detach().cpu()
        self._whole[parameter] = tensor  # now the last
        return tensor

    def _let_go(self, but: Collection[Tensor]) -> None:
        """Of more than a few, those that were not used for longest, and of which no view is left."""
        for parameter in list(self._whole)[:-_AT_ONCE]:
            if parameter not in but and _uses(self._whole[parameter]) == _ALONE:
                self._keep_shard(parameter)

    def _keep_shard(self, parameter: Tensor) -> None:
        assert isinstance(parameter, DTensor)
        tensor = self._whole.pop(parameter)
        mesh, placements = parameter.device_mesh, parameter.placements
        shard = distribute_tensor(tensor, mesh, placements, src_data_rank=None)
        with torch.no_grad():
            parameter.to_local().copy_(shard.to_local())
        self._fresh.discard(parameter)
        if not self._is_unset(tensor):
            self.unset.discard(parameter)


def _uses(tensor: Tensor) -> int:
    """How many tensors have its memory, and what else holds it."""
    count: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return count


_ALONE = _uses(torch.empty(1))
