"""Lints: what a plan does that is probably not meant."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from torch import nn

from distopt import names
from distopt.errors import ConfigError, listed, raise_all
from distopt.optim.census import Census, Entry, Place
from distopt.optim.decide import Decisions
from distopt.optim.near import near
from distopt.optim.rules import CUSTOM_KEYS, DefaultOptimWrapperConstructor, pattern

_WRAPPER = re.compile(rf"(?<!\w)({'|'.join(('module', *names.WRAPPED_CHILD))})(\\?\.(?![*+?{{])|$)")
"""A part of a key, or of a regular expression."""


def lint(decisions: Decisions) -> tuple[str, ...]:
    """The warnings about a plan.

    Raises:
        ConfigError: A custom key matches no parameter, and `unmatched_keys` is not `warn`.
    """
    decaying = _decaying(decisions)
    found = [
        *_ties(decisions),
        *_one_memory(decisions),
        *_zero_lr(decisions),
        *_matrices(decisions),
        *_marked_decay(decisions, decaying),
    ]
    if isinstance(decisions.constructor, DefaultOptimWrapperConstructor):
        found += [
            *_keys(decisions, decisions.constructor),
            *_norms_and_biases(decisions, decisions.constructor, decaying),
            *_norm_likes(decisions, decisions.constructor, decaying),
        ]
    return tuple(found)


def _keys(decisions: Decisions, rules: DefaultOptimWrapperConstructor) -> Iterator[str]:
    """Keys that match nothing, only frozen parameters, or only what longer keys take."""
    matched: set[str] = set()
    trainable: set[str] = set()
    decided: set[str] = set()
    lost: dict[str, dict[str, None]] = defaultdict(dict)
    for entry, place in decisions.census.places():
        if keys := rules.matching_keys(place):
            matched.update(keys)
            if entry.requires_grad:
                first, *others = keys
                trainable.update(keys)
                for key in others:
                    lost[key][f"{first}'s"] = None
                decided.add(first)
    unmatched = [key for key in rules.custom_keys if key not in matched]
    places = decisions.census.places() if unmatched else ()
    passed = {key for _, place in places for key in rules.passed_over(place)}
    errors = [_not_hidden(key) for key in unmatched if key in passed]
    is_error = decisions.config.unmatched_keys == "error"
    errors += _unmatched([key for key in unmatched if key not in passed], decisions.census, is_error)
    if is_error:
        raise_all(errors)
    yield from map(str, errors)
    for key in rules.custom_keys:
        if key in matched - trainable:
            yield f"{CUSTOM_KEYS}.{key}: matches frozen parameters only"
        elif key in trainable - decided:
            what = listed(list(lost[key]))
            yield f"{CUSTOM_KEYS}.{key}: decides nothing, since all that it matches is {what}"


def _unmatched(keys: list[str], census: Census, is_error: bool) -> list[ConfigError]:
    if not keys:
        return []
    fqns = [place.fqn for _, place in census.places()]
    parts = {part: None for fqn in fqns for part in (*fqn.split("."), fqn.rpartition(".")[0], fqn) if part}
    return [_unmatched_key(key, fqns, parts, is_error) for key in keys]


def _not_hidden(key: str) -> ConfigError:
    problem = "matches no hidden matrix: a matrix inside the model's repeated blocks, of no norm or embedding"
    return ConfigError(
        f"{CUSTOM_KEYS}.{key}", problem, allowed="hidden_only: false takes all that the key matches"
    )


def _unmatched_key(key: str, fqns: list[str], parts: Iterable[str], is_error: bool) -> ConfigError:
    bare = _WRAPPER.sub("", key)
    matches = pattern(bare) or (lambda fqn: bare in fqn)
    if bare and bare != key and any(map(matches, fqns)):
        problem = "matches no parameter: names are those of the model before it is wrapped"
        return ConfigError(f"{CUSTOM_KEYS}.{key}", problem, suggestion=bare)
    return ConfigError(
        f"{CUSTOM_KEYS}.{key}",
        "matches no parameter",
        allowed="a part of a parameter's name"
        + "; unmatched_keys: warn accepts keys without a match" * is_error,
        suggestion=next(iter(near(key, parts)), None),
    )


def _ties(decisions: Decisions) -> Iterator[str]:
    """Shared parameters whose names the rules treat differently."""
    for entry, _ in decisions.verdicts:
        if len(entry.places) > 1 and not all(_says_as_the_owner(decisions, entry, p) for p in entry.places):
            yield f"shared parameter, owned once, as {entry.fqn}: {decisions.described(entry)}"


def _says_as_the_owner(decisions: Decisions, entry: Entry, place: Place) -> bool:
    """Whether a parameter would get the same values under another of its names."""
    if place is entry.places[0]:
        return True
    its, owners = (decisions.verdict(entry, of) for of in (place, entry.places[0]))
    return its.part == owners.part and its.over(decisions.defaults) == owners.over(decisions.defaults)


def _one_memory(decisions: Decisions) -> Iterator[str]:
    """Parameters that are several over one memory: `b.weight = nn.Parameter(a.weight.data)`."""
    if not decisions.census.overlaps:
        return
    trainable = {entry.fqn for entry, _ in decisions.verdicts}
    for fqns in decisions.census.overlaps:
        if not trainable.isdisjoint(fqns):
            yield (
                f"several parameters over one memory: {listed(fqns)}; each is stepped, and sharding takes"
                " them apart; to tie them, let all these names be one nn.Parameter"
            )


def _zero_lr(decisions: Decisions) -> Iterator[str]:
    still = [
        entry.fqn for entry, verdict in decisions.verdicts if verdict.over(decisions.defaults).get("lr") == 0
    ]
    if still:
        yield f"lr is 0 for {listed(still)}: frozen parameters (requires_grad) cost neither time nor memory"


def _matrices(decisions: Decisions) -> Iterator[str]:
    """An optimizer for the matrices inside a network, given what stands at its ends."""
    if "muon" not in decisions.config.type.lower():
        return
    walk = names.visits(decisions.census.model)
    head = next((visit.prefix for visit in reversed(walk) if isinstance(visit.module, nn.Linear)), None)
    ends = [
        entry.fqn
        for entry, verdict in decisions.verdicts
        if any(
            issubclass(place.holder.cls, nn.Embedding | nn.EmbeddingBag) or place.holder.prefix == head
            for place in entry.places
        )
        if verdict.key is None  # what a custom key says of it is meant
    ]
    if ends:
        yield f"{decisions.config.type} is for hidden matrices, not for embedding and head: {listed(ends)}"


def _decaying(decisions: Decisions) -> set[str]:
    """Parameters that have weight decay though no rule says so."""
    return {
        entry.fqn
        for entry, verdict in decisions.verdicts
        if "weight_decay" not in verdict.why and verdict.over(decisions.defaults).get("weight_decay")
    }


def _norms_and_biases(
    decisions: Decisions, rules: DefaultOptimWrapperConstructor, decaying: set[str]
) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {
        ("norms", "norm_decay_mult"): [],
        ("biases", "bias_decay_mult"): [],
        ("biases", "flat_decay_mult"): [],  # in_proj_bias, bias_ih_l0
    }
    for entry, _ in decisions.verdicts:
        if entry.fqn in decaying:
            name, ndim = entry.places[0].name, len(entry.shape)
            if rules.is_norm(entry, entry.places[0]):
                found["norms", "norm_decay_mult"].append(entry.fqn)
            elif name == "bias" and ndim <= 1:
                found["biases", "bias_decay_mult"].append(entry.fqn)
            elif "bias" in name and ndim == 1:
                found["biases", "flat_decay_mult"].append(entry.fqn)
    beside = ""
    if "weight_decay" not in decisions.config.arguments:  # which every multiplier of it needs
        beside = f", beside weight_decay: {decisions.defaults.get('weight_decay')},"
    for (what, option), fqns in found.items():
        if fqns and option in rules.multipliers:
            yield (
                f"weight decay on {what}, since their custom key sets aside {option}: {listed(fqns)};"
                " custom_keys_mode: combine keeps it"
            )
        elif fqns:
            advice = f"paramwise_cfg: {{{option}: 0}}{beside} leaves it off"
            yield f"weight decay on {what}: {listed(fqns)}; {advice}"


def _marked_decay(decisions: Decisions, decaying: set[str]) -> Iterator[str]:
    marked = sorted(decaying & decisions.census.marked)
    if marked:
        yield f"weight decay on what the model's author marked _no_weight_decay: {listed(marked)}"


def _norm_likes(
    decisions: Decisions, rules: DefaultOptimWrapperConstructor, decaying: set[str]
) -> Iterator[str]:
    """What decays in modules called norms, that `norm_decay_mult` passes by."""
    if "norm_decay_mult" not in rules.multipliers or decisions.config.paramwise.norm_types == "mmengine":
        return
    found: dict[type[nn.Module], list[str]] = defaultdict(list)
    for entry, _ in decisions.verdicts:
        place = entry.places[0]
        is_like = "norm" in place.holder.cls.__name__.lower() and not rules.is_norm(entry, place)
        if is_like and entry.fqn in decaying and len(entry.shape) <= 1:
            found[place.holder.cls].append(entry.fqn)
    for cls, fqns in found.items():
        path = f"{cls.__module__}:{cls.__qualname__}"
        yield f"{cls.__name__} is no norm for the rules: {listed(fqns)}; norm_types: [{path}] makes it one"
