"""`distopt schema`: prints the JSON Schema of the config file, or of a row of metrics.jsonl."""

from __future__ import annotations

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib.util import find_spec

from distopt import __version__

DESCRIPTION = """\
Prints the JSON Schema of the config file, for editors that complete and check it; or that of a row of
metrics.jsonl, for scripts that read it."""
EPILOG = """\
examples
  distopt schema > schema.json
  distopt schema --metrics

first line of a config, for editors with a YAML language server
  # yaml-language-server: $schema=schema.json

A type completes to the short names of what is installed here; any import path is valid as well.
"""


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        "distopt schema",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"distopt {__version__}")
    parser.add_argument("--metrics", action="store_true", help="that of a row of metrics.jsonl")
    args = parser.parse_args(argv)  # before the imports, so that --help answers at once

    if args.metrics:
        from distopt.monitor.row_schema import row_schema

        print(json.dumps(row_schema(), indent=2, ensure_ascii=False))
        return 0

    from distopt.config.json_schema import json_schema
    from distopt.registry import short_names
    from distopt.schedule.types import TYPES

    kinds = ["model", "loss", "dataset", "collate", "optimizer", "constructor", "callback"]
    if find_spec("torchmetrics"):
        kinds.append("metric")
    names = {"metric": [], "schedule": TYPES, **{kind: list(short_names(kind)) for kind in kinds}}
    print(json.dumps(json_schema(names), indent=2, ensure_ascii=False))
    return 0
