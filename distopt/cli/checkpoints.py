"""`distopt checkpoints`: lists the checkpoints of a run and verifies each."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from distopt.cli.exit import report
from distopt.errors import ConfigError

DESCRIPTION = "Lists the checkpoints of a run, and reads each to tell whether it is what was written."
EPILOG = """\
examples
  distopt checkpoints runs/quickstart
  distopt checkpoints runs/quickstart --quick
  distopt checkpoints runs/quickstart --json | jq -r '.[] | select(.damage == null) | .path'

exit status
  0  all are good
  1  one is damaged: a resume passes it over
  2  there is no such run
"""
DAMAGED = 1


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        "distopt checkpoints",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--quick", action="store_true", help="look at names and sizes alone")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args(argv)

    from distopt.checkpoint import directory

    if not args.run.is_dir():
        return report(ConfigError("", f"there is no run directory {args.run}"))
    found = [_describe(path, quick=args.quick) for path in directory.committed(args.run)]
    if args.json:
        print(json.dumps(found, indent=1))
    elif found:
        sys.stdout.writelines(f"{line}\n" for line in _table(found))
    else:
        print(f"{args.run} has no checkpoints")
    return DAMAGED if any(checkpoint["damage"] for checkpoint in found) else 0


def _describe(path: Path, *, quick: bool) -> dict[str, Any]:
    from distopt.checkpoint import directory, manifest

    damage = directory.damage(path, share=None if quick else (0, 1))
    progress = None if damage else directory.read_progress(path)
    return {
        "path": str(path),
        "step": int(path.name.removeprefix("step_")),
        "ranks": progress.world_size if progress else None,
        "bytes": None if damage else manifest.total_bytes(path),
        "written": datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "seconds"),
        "best": directory.followed(path.with_name("best")) == path,
        "damage": damage,
    }


def _table(found: Sequence[dict[str, Any]]) -> list[str]:
    from distopt.monitor.console import align

    rows = [
        (
            Path(checkpoint["path"]).name,
            "–" if checkpoint["damage"] else f"{checkpoint['bytes'] / 2**20:,.1f} MiB",
            "–" if checkpoint["damage"] else str(checkpoint["ranks"]),
            checkpoint["written"],
            (f"damaged: {checkpoint['damage']}" if checkpoint["damage"] else "good")
            + ", best" * checkpoint["best"],
        )
        for checkpoint in found
    ]
    return [*align([("checkpoint", "size", "ranks", "written", ""), *rows])]
