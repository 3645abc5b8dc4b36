"""The step of a fused Adam: gradients are divided on the way, or nothing is done if the device says so.

By the first, clipping saves a pass over all gradients; by the second, a step is left out without asking the
device. torch made both for its gradient scaler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.optim import optimizer as hooks

from distopt.optim import steps_plain_tensors
from distopt.optim.local_shards import same_objects


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `FusedStep` is for it, or for all of its parts.

    Fused SGD would leave its momentum uninitialised where its first step is none.
    """
    return all(
        type(part) in (torch.optim.Adam, torch.optim.AdamW)
        and all(group["fused"] for group in part.param_groups)
        and steps_plain_tensors(part)
        for part in _parts(optimizer)
    )


class FusedStep:
    """Steps a fused optimizer: as its own `step`, bit by bit, in two thirds of the host's time.

    Args:
        optimizer: Of which `is_fused` is true.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._kernel = _Kernel()

    def __call__(self, *, unless: Tensor | None = None, divisor: Tensor | None = None) -> None:
        """Takes a step.

        Args:
            unless: Scalar; where it is true, nothing changes.
            divisor: Scalar, that gradients are divided by.
        """
        told = {"found_inf": unless, "grad_scale": divisor}
        given = {name: value.float() for name, value in told.items() if value is not None}
        if not (self._is_plain() and self._kernel.step(self._optimizer, given)):
            self._kernel = _Kernel()  # it would keep alive what is replaced meanwhile
            self._step_as_torch_does(given)

    def _is_plain(self) -> bool:
        """Whether nobody looks at its `step`, or has another in its place, and it has no parts."""
        optimizer = self._optimizer
        return not (
            "step" in vars(optimizer)
            or hasattr(optimizer, "parts")
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or hooks._global_optimizer_pre_hooks
            or hooks._global_optimizer_post_hooks
            or _profiler_enabled()
        )

    def _step_as_torch_does(self, given: Mapping[str, Tensor]) -> None:
        for part in _parts(self._optimizer):
            vars(part).update(given)
        try:
            self._optimizer.step()
        finally:
            for part in _parts(self._optimizer):
                for name in given:
                    delattr(part, name)


class _Group(NamedTuple):
    """The tensors of one of the optimizer's groups, as the kernel takes them."""

    params: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    steps: list[Tensor]


class _Kernel:
    """Calls the kernel with lists of tensors that are made once; torch makes and checks them in each step.

    They are made anew where parameters or state are other objects than they were, or in other groups.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []  # of the groups
        self._params: list[Tensor] = []
        self._values: list[Any] = []  # all there is in the state
        self._groups: list[_Group] | None = None  # None where the kernel cannot take them
        self._steps: list[Tensor] = []

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, given: Mapping[str, Tensor]) -> bool:
        """Takes a step, if it can: not the first, which makes the state, nor where a gradient is missing."""
        groups, state = optimizer.param_groups, optimizer.state
        params = [p for group in groups for p in group["params"]]
        grads = [p.grad for p in params]
        states = [state.get(p) or {} for p in params]
        if any(grad is None for grad in grads) or not all(states) or not all(map(_is_usual, groups)):
            return False
        values = [value for of_param in states for value in of_param.values()]
        sizes = [len(group["params"]) for group in groups]
        is_known = sizes == self._sizes and same_objects(params, self._params)
        if not (is_known and same_objects(values, self._values)):
            self._sizes, self._params, self._values = sizes, params, values
            self._groups = _grouped(groups, state)
            self._steps = [step for group in self._groups or () for step in group.steps]
        if self._groups is None:
            return False
        torch._foreach_add_(self._steps, 1)
        first = 0
        for group, (own, *of_state) in zip(groups, self._groups, strict=True):
            last = first + len(own)
            kernel: Callable[..., None] = (
                torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            )
            kernel(
                own,
                grads[first:last],
                *of_state,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=group["amsgrad"],
                maximize=group["maximize"],
                **given,
            )
            first = last
        if "found_inf" in given:
            torch._foreach_sub_(self._steps, [given["found_inf"]] * len(self._steps))
        return True


def _is_usual(group: Mapping[str, Any]) -> bool:
    """Whether lr and betas are none of the tensors that they may be as well, and it is still a fused one."""
    return group["fused"] and not any(isinstance(value, Tensor) for value in (group["lr"], *group["betas"]))


def _grouped(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Any]) -> list[_Group] | None:
    """The tensors of each group; None where one has several types, or all are on several devices."""
    found = []
    devices = set()
    for group in groups:
        params, states = group["params"], [state[p] for p in group["params"]]
        averages, squares = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq"))
        greatest = [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else []
        steps = [s["step"] for s in states]
        tensors = [*params, *averages, *squares, *greatest]
        devices |= {tensor.device for tensor in (*tensors, *steps)}
        if len({tensor.dtype for tensor in tensors}) > 1 or len(devices) > 1:
            return None
        found.append(_Group(list(params), averages, squares, greatest, steps))
    return found


def _parts(optimizer: Any) -> list[Any]:
    return getattr(optimizer, "parts", [optimizer])
