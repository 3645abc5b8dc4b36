"""`distopt launch`: prints the script or manifest that starts a run on a cluster."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from distopt.cli.exit import report
from distopt.errors import ConfigError, nearest

DESCRIPTION = "Prints what starts a run: a script, or a manifest. It is checked against the config before."
EPILOG = """\
examples
  distopt launch local cfg.yaml --gpus 8 > run.sh
  distopt launch slurm cfg.yaml --nodes 4 --gpus 8 --time 24:00:00 --partition gpu > train.sbatch
  distopt launch kubernetes cfg.yaml --facts cluster.yaml --nodes 4 | kubectl apply -f -

facts
  Each option is a key of the file given by --facts, too; options win over the file. Those that may be
  repeated are added to what it has.

exit status
  0  printed
  2  the input is wrong: one message says where, what was given and what is allowed
"""
_NUMBERS = ("nodes", "gpus", "ranks", "cpus", "grace", "requeues")
_LISTS = ("mounts", "env", "setup")


def main(argv: Sequence[str]) -> int:
    from distopt.config.section import texts
    from distopt.launch import MANIFESTS, SCRIPTS, Job, check_run, read_job, render, world_of

    facts = texts(Job)
    parser = ArgumentParser(
        "distopt launch",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "kind", metavar="KIND", help="local, multinode, slurm, kubernetes, jobset or trainjob"
    )
    parser.add_argument(
        "config", metavar="cfg.yaml", nargs="?", help="what to train; else the script is told"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="set a key of the config"
    )
    parser.add_argument("--facts", type=Path, metavar="FILE", help="YAML with facts of the cluster")
    for name, text in facts.items():
        if name in _LISTS:
            parser.add_argument(f"--{name}", action="append", help=f"{text} May be repeated.")
        else:
            parser.add_argument(f"--{name}", type=int if name in _NUMBERS else str, help=text)
    args = parser.parse_intermixed_args(argv)

    from distopt.cli.preflight import preflight
    from distopt.config import load_config

    given = {name: getattr(args, name) for name in facts if getattr(args, name) is not None}
    try:
        if args.kind not in SCRIPTS:
            near = nearest(args.kind, SCRIPTS)
            raise ConfigError("", "no such kind", given=args.kind, allowed=SCRIPTS, suggestion=near)
        if "env" in given:
            given["env"] = dict(_variable(text) for text in given["env"])
        job = read_job(given, args.facts)
        if args.config:
            config = load_config(args.config, args.overrides)
            preflight(config, world_of(args.kind, job), here=args.kind not in MANIFESTS)
            if args.kind != "local":
                check_run(job, config)
        arguments = [args.config, *args.overrides] if args.config else []
        try:
            text = render(args.kind, job, arguments)
        except ConfigError as error:
            raise error.located(job.locate) from None
    except ConfigError as error:
        return report(error)
    sys.stdout.write(text)
    return 0


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError("env", "a variable is written NAME=VALUE", given=text, where="--env")
    return name, value
