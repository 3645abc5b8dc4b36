"""`distopt check`: looks for mistakes in a config, without training."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distopt.cli.arguments import NOTES, config_parser
from distopt.cli.exit import report
from distopt.cli.wording import counted
from distopt.errors import ConfigError

if TYPE_CHECKING:
    from distopt.config import BatchLayout

DESCRIPTION = "Looks for mistakes in a config, without training and without writing anything."
EPILOG = f"""\
examples
  distopt check cfg.yaml
  distopt check cfg.yaml --full --nproc 8 strategy=fsdp

{NOTES}"""


def main(argv: Sequence[str]) -> int:
    parser = config_parser("distopt check", DESCRIPTION, EPILOG)
    parser.add_argument(
        "--nproc", type=_count, metavar="N", help="also check that the batch divides over N ranks"
    )
    parser.add_argument(
        "--full", action="store_true", help="also import, build the data, and plan the groups"
    )
    args = parser.parse_intermixed_args(argv)  # before the imports, so that --help answers at once

    from distopt.cli.preflight import preflight
    from distopt.config import batch_layout, load_config

    try:
        config = load_config(args.config, args.overrides)
        preflight(config, args.nproc)
        found = [_describe(batch_layout(config, args.nproc))] if args.nproc else []
        if args.full:
            from distopt.cli.full_check import full_check

            found += full_check(config)
    except ConfigError as error:
        return report(error)
    print(f"{args.config}: ok")
    if not args.full:
        found.append("not looked at: arguments of types, data, groups (--full does)")
    print("\n".join(f"  {line}" for line in found))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text} is no number of ranks")
    return int(text)


def _describe(layout: BatchLayout) -> str:
    return (
        f"batch: {counted(layout.batch_size, 'sample')} = {counted(layout.world, 'rank')}"
        f" × {layout.micro_batch_size} × {counted(layout.accumulation, 'micro-step')}"
    )
