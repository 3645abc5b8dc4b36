"""The optimizer's step on this rank's shards, in place of the DTensors they are part of.

A DTensor costs host time at every operation, and an element-wise optimizer needs nothing of what that buys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import is_
from types import MethodType
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, optim
from torch.distributed.tensor import DTensor

T = TypeVar("T")
State = dict[str, Any]
"""Of one parameter: `exp_avg`, `step`, …"""

_ELEMENT_WISE = frozenset(
    {
        optim.Adadelta,
        optim.Adagrad,
        optim.Adam,
        optim.Adamax,
        optim.AdamW,
        optim.ASGD,
        optim.NAdam,
        optim.RAdam,
        optim.RMSprop,
        optim.Rprop,
        optim.SGD,
    }
)
_STEPPING_SHARDS: WeakSet[optim.Optimizer] = WeakSet()
_COUNTERS = frozenset({"step", "eta", "mu", "mu_product"})
"""State that is one number for the whole parameter, and so no DTensor."""


def step_local_shards(optimizer: optim.Optimizer) -> None:
    """Lets `optimizer.step` work on local shards: the same bits as with DTensors, in less host time.

    Outside of `step`, and for its hooks and closure, groups and state have the live DTensors as ever; they
    share their memory with what is stepped. An optimizer that is not one of torch's element-wise classes, a
    subclass of one, or one whose `step` someone has replaced, is left as it is; so is any step whose
    gradients or state are not laid out like their parameters. A copy of the optimizer steps DTensors.
    """
    groups = optimizer.param_groups
    sharded = [p for group in groups for p in group["params"] if isinstance(p, DTensor)]
    if type(optimizer) not in _ELEMENT_WISE or "step" in vars(optimizer) or not sharded:
        return
    if any(group.get("differentiable") for group in groups):
        return
    as_it_is: Callable[..., None] = type(optimizer).step.__wrapped__  # type: ignore[attr-defined]  # no hooks
    shards = _Shards()

    def step(self: optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with shards.in_place(self):
            as_it_is(self)
        return loss

    _STEPPING_SHARDS.add(optimizer)
    optimizer.step = MethodType(  # type: ignore[method-assign]
        optim.Optimizer.profile_hook_step(step), optimizer
    )


def steps_plain_tensors(optimizer: optim.Optimizer) -> bool:
    """Whether there are no DTensors in what `step` computes with, which would not mix with plain tensors."""
    params = (p for group in optimizer.param_groups for p in group["params"])
    return optimizer in _STEPPING_SHARDS or not any(isinstance(p, DTensor) for p in params)


class _Shards:
    """What one optimizer steps: found anew where parameters or state are other objects than they were."""

    def __init__(self) -> None:
        self._wholes: list[Tensor] = []
        self._shards: list[Tensor] = []
        self._states: list[State | None] = []  # by parameter; None where it has none yet
        self._values: list[Any] = []  # all there is in them
        self._local_states: list[State | None] = []
        self._local_values: list[Any] = []
        self._local_state: defaultdict[Tensor, State] = defaultdict(dict)

    @contextmanager
    def in_place(self, optimizer: optim.Optimizer) -> Iterator[None]:
        """For the `with` block, which may raise, the optimizer has local shards where they will do."""
        groups, state = optimizer.param_groups, optimizer.state
        params = [group["params"] for group in groups]
        wholes = [*chain.from_iterable(params)]
        grads = self._local_grads(wholes) if self._find(wholes, state) else None
        if grads is None:
            yield
            return
        try:
            for shard, grad in grads:
                shard.grad = grad
            rest = iter(self._shards)
            for group, of_group in zip(groups, params, strict=True):
                group["params"] = [next(rest) for _ in of_group]
            optimizer.state = self._local_state
            yield
        finally:
            optimizer.state = state
            for group, of_group in zip(groups, params, strict=True):
                group["params"] = of_group
            for shard, _ in grads:
                shard.grad = None
            self._hand_over(state)

    def _find(self, wholes: list[Tensor], state: dict[Tensor, State]) -> bool:
        """Whether everything is laid out such that shards of it belong together."""
        # Not to_local(), which gives a new view of a Parameter at each call.
        shards = [p._local_tensor if isinstance(p, DTensor) else p for p in wholes]
        states = [*map(state.get, wholes)]
        if (
            same_objects(wholes, self._wholes)
            and same_objects(shards, self._shards)
            and same_objects(states, self._states)
            and same_objects(_values(states), self._values)
        ):
            return True
        self._wholes, self._shards, self._local_state = [], [], defaultdict(dict)
        for whole, shard, of_whole in zip(wholes, shards, states, strict=True):
            if isinstance(whole, DTensor) and not _is_laid_out(whole, of_whole or {}):
                return False
            if of_whole is not None:
                self._local_state[shard] = of_whole if whole is shard else _local(of_whole)
        self._wholes, self._shards = wholes, shards
        self._note(state)
        return True

    def _local_grads(self, wholes: list[Tensor]) -> list[tuple[Tensor, Tensor]] | None:
        """Shards, each with its gradient; None where a gradient is not laid out like its parameter."""
        grads = []
        for whole, shard in zip(wholes, self._shards, strict=True):
            grad = whole.grad
            if grad is None or whole is shard:
                continue
            if not isinstance(grad, DTensor) or grad.placements != whole.placements:  # type: ignore[attr-defined]
                return None
            grads.append((shard, grad._local_tensor))
        return grads

    def _hand_over(self, state: dict[Tensor, State]) -> None:
        """Gives the optimizer's state, as DTensors, what a step has made or replaced."""
        states = [*map(self._local_state.get, self._shards)]
        if same_objects(states, self._local_states) and same_objects(_values(states), self._local_values):
            return
        for whole, shard, of_shard in zip(self._wholes, self._shards, states, strict=True):
            if of_shard is None:
                continue
            if not isinstance(whole, DTensor):
                state[shard] = of_shard
                continue
            of_whole = state.setdefault(whole, {})
            for key, value in of_shard.items():
                if key not in of_whole or _local_value(of_whole[key]) is not value:
                    of_whole[key] = _whole(value, whole) if _is_sharded(key, value) else value
        self._note(state)

    def _note(self, state: dict[Tensor, State]) -> None:
        """Remembers what there is, in order to notice what will have changed."""
        self._states = [*map(state.get, self._wholes)]
        self._values = _values(self._states)
        self._local_states = [*map(self._local_state.get, self._shards)]
        self._local_values = _values(self._local_states)


def same_objects(these: Sequence[object], those: Sequence[object]) -> bool:
    return len(these) == len(those) and all(map(is_, these, those))


def _values(states: Iterable[State | None]) -> list[Any]:
    return [*chain.from_iterable(state.values() for state in states if state)]


def _is_sharded(key: str, value: object) -> bool:
    return isinstance(value, Tensor) and key not in _COUNTERS


def _is_laid_out(whole: DTensor, state: State) -> bool:
    """Whether the sum of what is done to shards is what is done to the whole."""
    layout = whole.device_mesh, whole.placements
    values = [value for key, value in state.items() if _is_sharded(key, value)]
    return not any(placement.is_partial() for placement in whole.placements) and all(
        isinstance(value, DTensor) and (value.device_mesh, value.placements) == layout for value in values
    )


def _local(state: State) -> State:
    return {key: _local_value(value) for key, value in state.items()}


def _local_value(value: T) -> T | Tensor:
    return value._local_tensor if isinstance(value, DTensor) else value


def _whole(shard: Tensor, like: DTensor) -> Tensor:
    """The DTensor of a shard, without a copy; from_local would move one that is offloaded to the CPU."""
    whole = like.detach().to(shard.dtype)
    whole._local_tensor = shard  # type: ignore[attr-defined]
    return whole
