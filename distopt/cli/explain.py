"""`distopt explain`: tells why a parameter or a group has the options that it has."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from distopt.cli.arguments import NOTES, config_parser
from distopt.cli.exit import report
from distopt.errors import ConfigError

if TYPE_CHECKING:
    from distopt.config import Config
    from distopt.optim import Entry
    from distopt.optim.decide import Decisions
    from distopt.optim.explain import Contender
    from distopt.optim.plan import Group

DESCRIPTION = """\
Tells why a parameter or a group has the options that it has: the arithmetic, the rules that
decide, the others that are for it and why they do not, and where each stands in the config."""
EPILOG = f"""\
examples
  distopt explain cfg.yaml blocks.0.norm1.bias
  distopt explain cfg.yaml norm optimizer.weight_decay=0.05

{NOTES}"""
_WIDTH = 80
_INDENT = 13 * " "


def main(argv: Sequence[str]) -> int:
    parser = config_parser(
        "distopt explain", DESCRIPTION, EPILOG, name="a parameter, by any of its names, or a group"
    )
    args = parser.parse_intermixed_args(argv)  # before the imports, so that --help answers at once

    from distopt.cli.model import model_without_memory
    from distopt.config import load_config
    from distopt.optim.decide import decide
    from distopt.optim.explain import find
    from distopt.optim.lints import lint

    try:
        config = load_config(args.config, args.overrides)
    except ConfigError as error:
        return report(error)
    try:
        with redirect_stdout(sys.stderr):  # what a model prints is no part of the explanation
            decisions = decide(model_without_memory(config), config.optimizer)
        lint(decisions)  # which refuses a key without a match
        entry, group = find(decisions, decisions.groups, args.name)
    except ConfigError as error:
        return report(error.located(config.locate))
    told = []
    if entry:
        its = next((group for group in decisions.groups if entry in group.entries), None)
        told.append(_parameter(config, decisions, entry, its))
    if group:
        told.append(_group(config, decisions, group))
    print("\n\n".join("\n".join(lines) for lines in told))
    return 0


def _parameter(config: Config, decisions: Decisions, entry: Entry, group: Group | None) -> Iterator[str]:
    from distopt.optim.explain import contenders

    owner = entry.places[0]
    yield " = ".join([entry.fqn, *entry.aliases])
    yield f"  module  {owner.holder.cls.__name__} {owner.holder.path}".rstrip()
    yield f"  shape   {' × '.join(map(str, entry.shape)) or 'one number'}"
    if group is None:
        yield "  group   none: it is frozen (requires_grad is false)"
        return
    yield f"  group   {group.name}"
    yield from _values(config, group)
    yield from _rules(config, contenders(decisions, entry, owner))
    if entry.aliases:
        yield from _names(decisions, entry)


def _group(config: Config, decisions: Decisions, group: Group) -> Iterator[str]:
    from distopt.cli.wording import counted
    from distopt.monitor.groups import group_rows
    from distopt.optim.explain import contenders

    [row] = group_rows([group.to_dict()])
    first = group.entries[0]  # the same rules decided on all
    yield f"group {group.name}"
    yield f"  {counted(row.tensors, 'tensor')}, {row.numel:,} parameters"
    yield from _values(config, group)
    yield from _rules(
        config, [rule for rule in contenders(decisions, first, first.places[0]) if rule.outcome == "decides"]
    )
    yield from ("", "parameters", *(f"  {name}" for name in row.names))


def _values(config: Config, group: Group) -> Iterator[str]:
    """Each option with its arithmetic; where no rule touched it, with the place that it comes from."""
    yield from ("", "values")
    width = max(map(len, group.options), default=0)
    for option, value in group.options.items():
        told, where = group.why.get(option), None
        if told is None and option in config.optimizer.arguments:
            told, where = _text(value), config.locate(f"optimizer.{option}")
        elif told is None:
            told = f"{_text(value)} ({config.optimizer.type}'s default)"
        yield from _line(f"  {option:<{width}}  {told}", where)


def _rules(config: Config, contenders: Sequence[Contender]) -> Iterator[str]:
    yield from ("", "rules")
    for outcome, rule, key, value, reason in contenders:
        if outcome != "not given":
            entry = _text(value) if isinstance(value, Mapping) else ""
            what = f"{rule}: {_text(value)}" if value is not None and not entry else rule
            yield from _line(f"  {outcome:<9}  {what}", config.locate(key))
            detail = "; ".join(filter(None, (entry, reason)))
            yield from wrap(detail, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    not_given = [contender.rule for contender in contenders if contender.outcome == "not given"]
    if not_given:
        yield from wrap(f"  not given  {', '.join(not_given)}", _WIDTH, subsequent_indent=_INDENT)
    if not contenders:
        yield "  none is for such a parameter"


def _names(decisions: Decisions, entry: Entry) -> Iterator[str]:
    """What a shared parameter would get under each of its names."""
    yield from ("", "names, of which the first decides")
    for place in entry.places:
        verdict = decisions.verdict(entry, place)
        options = verdict.over(decisions.defaults)
        values = ", ".join(f"{option} {_text(value)}" for option, value in options.items())
        yield f"  {place.fqn}, of {place.holder.cls.__name__}"
        yield f"      {verdict.label}: {values}"


def _line(text: str, where: str | None) -> Iterator[str]:
    """A text with its place in the config at the end of the line, or on the next where both are long."""
    if where and len(text) + 2 + len(where) > _WIDTH:
        yield from (text, _INDENT + where)
    else:
        yield f"{text}{where or '':>{_WIDTH - len(text)}}".rstrip()


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
