"""Module trees as data, for hypothesis: random, shrinkable, and printed as a tree when a test fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import nn

from distopt import names


class DeformConv2d(nn.Module):
    """In the place of mmcv's, which has no build here; with more around its offset than that has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))
        self.bias = nn.Parameter(torch.zeros(2))
        self.conv_offset = nn.Conv2d(2, 2, 1)
        self.conv_offset_norm = nn.BatchNorm2d(2)
        self.conv_offset_head = nn.Linear(2, 2)


class ModulatedDeformConv2d(DeformConv2d):
    def __init__(self) -> None:
        super().__init__()
        self.conv_offset_mask = nn.Conv2d(2, 2, 1, groups=2)
        self.conv = nn.Conv2d(2, 2, 1)


class OwnNorm(nn.LayerNorm):
    pass


class LlamaRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


class Optional(nn.Module):
    """Has a child and a parameter that are not there."""

    def __init__(self) -> None:
        super().__init__()
        self.register_module("downsample", None)
        self.register_parameter("gain", None)


CONTAINERS: dict[str, Callable[[], nn.Module]] = {
    "Module": nn.Module,
    "ModuleList": nn.ModuleList,
    "Sequential": nn.Sequential,
    "DeformConv2d": DeformConv2d,
    "OwnNorm": lambda: OwnNorm(2),
    "Optional": Optional,
}
KINDS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(2, 2),
    "Linear without bias": lambda: nn.Linear(2, 2, bias=False),
    "Linear with weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    "Conv2d": lambda: nn.Conv2d(4, 2, 1),
    "Conv2d depthwise": lambda: nn.Conv2d(2, 2, 1, groups=2),
    "Conv2d depthwise by chance": lambda: nn.Conv2d(1, 2, 1),
    "Conv1d depthwise": lambda: nn.Conv1d(2, 2, 1, groups=2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(2, 2, 1, groups=2),
    "BatchNorm1d": lambda: nn.BatchNorm1d(2),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(2),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(2, affine=True),
    "GroupNorm": lambda: nn.GroupNorm(1, 2),
    "LayerNorm": lambda: nn.LayerNorm(2),
    "LayerNorm of a matrix": lambda: nn.LayerNorm((2, 2)),
    "RMSNorm": lambda: nn.RMSNorm(2),
    "LlamaRMSNorm": LlamaRMSNorm,
    "Embedding": lambda: nn.Embedding(2, 2),
    "MultiheadAttention": lambda: nn.MultiheadAttention(2, 1),
    "LSTM": lambda: nn.LSTM(2, 2),
    "PReLU": nn.PReLU,
    "ModulatedDeformConv2d": ModulatedDeformConv2d,
    **CONTAINERS,
}
OWN = {"scale": (2,), "bias": (2,), "weight": (2, 2), "cls_token": (1, 1, 2), "temperature": ()}
"""Parameters that any module may have besides its kind's, with their shapes."""
CHILDREN = [
    *("layers", "0", "1", "10", "layer", "layer1", "backbone", "head"),
    *("norm", "attn", "bias", "weight", "conv_offset", "module"),
]


@dataclass(frozen=True)
class Node:
    kind: str
    own: tuple[str, ...] = ()
    children: tuple[tuple[str, Node | int], ...] = ()
    """By name. A number stands for a small module that is there already, used once more."""

    def build(self, built: list[nn.Module]) -> nn.Module:
        """Appends itself to `built` when it is complete: so no module ever contains itself."""
        module = KINDS[self.kind]()
        for name in self.own:
            if not hasattr(module, name):
                module.register_parameter(name, nn.Parameter(torch.zeros(OWN[name])))
        for name, child in self.children:
            small = [one for one in built if not any(inner._modules for inner in one.children())]
            if not hasattr(module, name) and (isinstance(child, Node) or small):
                again = small[child % len(small)] if isinstance(child, int) else child.build(built)
                module.add_module(name, again)
        built.append(module)
        return module


@dataclass(frozen=True)
class Tree:
    root: Node
    frozen: tuple[int, ...] = ()
    """The n-th parameters."""
    tied: tuple[tuple[int, int], ...] = ()
    """The n-th and the m-th parameter are one. Shapes do not matter: nothing runs here."""

    def build(self, device: str = "cpu") -> nn.Module:
        built: list[nn.Module] = []
        with torch.device(device):
            model = self.root.build(built)
        slots = [(module._parameters, name) for module in built for name in module._parameters]
        for first, second in self.tied if slots else ():
            of_first, name = slots[first % len(slots)]
            of_second, other_name = slots[second % len(slots)]
            of_second[other_name] = of_first[name]
        for index in self.frozen if slots else ():
            of, name = slots[index % len(slots)]
            if (parameter := of[name]) is not None:
                parameter.requires_grad_(False)
        return model

    @cached_property
    def paths(self) -> dict[str, bool]:
        """What custom keys are matched with (a dot before a parameter of the root) → is it trained."""
        live = names.live_parameters(names.visits(self.build()))
        return {fqn if "." in fqn else f".{fqn}": live[fqn].requires_grad for fqn in live}

    def __repr__(self) -> str:
        return "\n" + "\n".join(_lines(self.build(), "", "", {})) + "\n"


def _lines(module: nn.Module, name: str, path: str, seen: dict[int, str]) -> Iterator[str]:
    """One line a module and parameter; what was there before, by the name that it had."""
    indent = "    " * (path.count(".") + 1 if path else 0)
    label = f"{indent}{name + ': ' if name else ''}"
    if id(module) in seen:
        yield f"{label}the module {seen[id(module)]}"
        return
    seen[id(module)] = path
    yield f"{label}{type(module).__name__}"
    for own, parameter in module._parameters.items():
        if parameter is not None:
            fqn = f"{path}.{own}".removeprefix(".")
            first = seen.setdefault(id(parameter), fqn)
            what = list(parameter.shape) if first == fqn else f"the parameter {first}"
            yield f"{indent}    {own}: {what}{'' if parameter.requires_grad else ', frozen'}"
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _lines(child, child_name, f"{path}.{child_name}".removeprefix("."), seen)


@dataclass(frozen=True)
class Case:
    """A model and an optimizer section for it."""

    tree: Tree
    config: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{self.tree!r}{self.config!r}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints, in place of the calls that built the case."""
        printer.text(repr(self))


def examples(number: int) -> settings:
    """The same in every run. Drawing a model takes long as it is; to explain a failure would take minutes."""
    phases = [phase for phase in Phase if phase is not Phase.explain]
    slow = [HealthCheck.too_slow]
    return settings(max_examples=number, phases=phases, suppress_health_check=slow, derandomize=True)


_leaves = st.sampled_from(list(KINDS)).map(Node)


def _inner(child: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.builds(
        Node,
        st.sampled_from(list(CONTAINERS)),
        st.lists(st.sampled_from(list(OWN)), max_size=2).map(tuple),
        st.lists(
            st.tuples(st.sampled_from(CHILDREN), st.one_of(child, child, child, st.integers(0, 9))),
            min_size=1,
            max_size=5,
        ).map(tuple),
    )


_indices = st.integers(0, 30)
trees = st.builds(
    Tree,
    _inner(st.recursive(_leaves, _inner, max_leaves=8)),
    st.lists(_indices, max_size=3).map(tuple),
    st.lists(st.tuples(_indices, _indices), max_size=2).map(tuple),
).filter(lambda tree: any(tree.paths.values()))
"""Any model that has something to train."""

factors = st.sampled_from([0, 1, 0.1, 2.0]) | st.floats(0, 10)
MULTIPLIERS = [
    "bias_lr_mult",
    "bias_decay_mult",
    "norm_decay_mult",
    "dwconv_decay_mult",
    "flat_decay_mult",
    "dcn_offset_lr_mult",
]
_ABSENT = object()


def _some(fields: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Each field there or not. The `optional` of `fixed_dictionaries` seldom has more than one."""
    return st.fixed_dictionaries({name: st.just(_ABSENT) | of_one for name, of_one in fields.items()}).map(
        lambda found: {name: value for name, value in found.items() if value is not _ABSENT}
    )


_entries = _some(
    {
        "lr_mult": factors,
        "decay_mult": factors,
        "momentum": st.sampled_from([0.5, 0.9]),
        "lr": st.sampled_from([0.3, 1]),
        "weight_decay": st.sampled_from([0, 0.2]),
    }
)


@st.composite
def custom_keys(draw: st.DrawFn, tree: Tree, entries: st.SearchStrategy[Any] = _entries) -> dict[str, Any]:
    """Parts of names that the tree has, hence often one inside the other, or of the same length."""
    keys: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(list(tree.paths)), max_size=4)):
        begin = draw(st.integers(0, len(path) - 1))
        end = draw(st.integers(begin + 1, len(path)))
        keys[path[begin:end]] = draw(entries)
    return keys


_GIVEN = [("lr", "weight_decay")] * 5 + [("lr",), ("weight_decay",), ()]


@st.composite
def cases(draw: st.DrawFn, extra: Mapping[str, st.SearchStrategy[Any]] | None = None) -> Case:
    """A tree, and rules that have what they multiply.

    Args:
        draw: Of hypothesis.
        extra: Further keys of `paramwise_cfg`, each there or not.
    """
    tree = draw(trees)
    base = {"type": "SGD", "momentum": 0.8}
    bases = {"lr": st.sampled_from([1e-3, 0.3, 1]), "weight_decay": st.sampled_from([0.05, 1e-4, 0])}
    given = {name: draw(bases[name]) for name in draw(st.sampled_from(_GIVEN))}
    rules: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(MULTIPLIERS, st.sampled_from([0, 0.1, None]) | factors),
        "custom_keys": custom_keys(tree),
        "bypass_duplicate": st.just(True) | st.booleans(),
        **(extra or {}),
    }
    paramwise = draw(_some(rules))
    return Case(tree, {**base, **given, "paramwise_cfg": _founded(paramwise, given)})


def _founded(paramwise: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Without the multipliers whose base is not given."""
    if "lr" not in given:
        paramwise = {name: rule for name, rule in paramwise.items() if not name.endswith("lr_mult")}
        paramwise.pop("custom_keys", None)
    if "weight_decay" not in given:
        paramwise = {name: rule for name, rule in paramwise.items() if not name.endswith("decay_mult")}
        for entry in paramwise.get("custom_keys", {}).values():
            entry.pop("decay_mult", None)
    return paramwise
