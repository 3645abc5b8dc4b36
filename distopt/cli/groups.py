"""`distopt groups`: shows the optimizer's parameter groups, without training."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from distopt.cli.arguments import OVERRIDES, config_parser
from distopt.cli.exit import report
from distopt.errors import ConfigError

if TYPE_CHECKING:
    from distopt.optim import Plan

DESCRIPTION = """\
Shows the optimizer's parameter groups, and warns of what is probably not meant.
Builds the model without memory for its weights, and reads no data."""
EPILOG = f"""\
examples
  distopt groups cfg.yaml
  distopt groups cfg.yaml --params | grep norm
  distopt groups cfg.yaml --strict optimizer.paramwise_cfg.bias_decay_mult=0

{OVERRIDES}
exit status
  0  printed
  1  printed, and there are warnings: with --strict only
  2  the input is wrong: one message says where, what was given and what is allowed
"""
LINTS = 1
"""The exit status of warnings under `--strict`."""


def main(argv: Sequence[str]) -> int:
    parser = config_parser("distopt groups", DESCRIPTION, EPILOG)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--params", action="store_true", help="also list every parameter with its values")
    form.add_argument("--json", action="store_true", help="print the plan and the warnings as JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where there are warnings")
    args = parser.parse_intermixed_args(argv)  # before the imports, so that --help answers at once

    from distopt.cli.model import model_without_memory
    from distopt.config import load_config
    from distopt.optim import make_plan

    try:
        config = load_config(args.config, args.overrides)
    except ConfigError as error:
        return report(error)
    try:
        with redirect_stdout(sys.stderr):  # what a model prints is no part of the table
            plan = make_plan(model_without_memory(config), config.optimizer)
    except ConfigError as error:
        return report(error.located(config.locate))
    if args.json:
        print(json.dumps({**plan.to_dict(), "warnings": plan.warnings}, indent=1))
    else:
        _show(plan, params=args.params)
    return LINTS if args.strict and plan.warnings else 0


def _show(plan: Plan, *, params: bool) -> None:
    from rich.text import Text

    from distopt.errors import listed
    from distopt.monitor.console import group_table
    from distopt.monitor.groups import collapse
    from distopt.monitor.output import Output

    out = Output()
    lines: list[str | Text] = [*group_table(plan.to_dict()["groups"], out.width)]
    if plan.frozen:
        lines.append(f"frozen, in no group: {listed(collapse(plan.frozen))}")
    if params:
        lines += ["", *_parameters(plan)]
    if plan.warnings:
        lines += ["", *(Text.assemble(("warning: ", "bold yellow"), warning) for warning in plan.warnings)]
    with out.capture() as captured:  # so that `| head` ends this command as it ends any other
        out.print(*lines, sep="\n", soft_wrap=True)
    sys.stdout.write(captured.get())


def _parameters(plan: Plan) -> Iterator[str]:
    """A line for each parameter: its names, values, group and the rules that decided."""
    from distopt.monitor.console import align
    from distopt.monitor.groups import group_rows

    groups = plan.to_dict()["groups"]
    width = max(len(group["name"]) for group in groups)
    rows = [
        (
            " = ".join([param["fqn"], *param["aliases"]]),
            row.lr,
            row.weight_decay,
            f"{row.name:<{width}}  {row.rule}",
        )
        for group, row in zip(groups, group_rows(groups), strict=True)
        for param in group["params"]
    ]
    frozen = [(fqn, "-", "-", f"{'-':<{width}}  frozen") for fqn in plan.frozen]
    yield from align([("parameter", "lr", "wd", f"{'group':<{width}}  rule"), *rows, *frozen])
