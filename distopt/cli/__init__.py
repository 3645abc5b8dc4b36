"""The `distopt` command: one module a subcommand, imported only when it is called for."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module

from distopt import __version__

COMMANDS = {
    "check": "look for mistakes in a config, without training",
    "groups": "show the optimizer's parameter groups, without training",
    "explain": "tell why a parameter or a group has the lr and weight decay that it has",
    "schedule": "show how lr and other options move over the run, without training",
    "checkpoints": "list the checkpoints of a run, and verify each",
    "export": "write a checkpoint's weights into one safetensors file",
    "launch": "print the script or manifest that starts a run: on one node, several, Slurm, Kubernetes",
    "tail": "show how a run, or several, are doing, from their directories alone",
    "schema": "print the JSON Schema of the config file, for editors; or of a row of metrics.jsonl",
    "doctor": "look at the nodes that a job would run on, and point at the odd one out",
}
"""Subcommand → what it does. Each is a module beside this one, with `main(argv) -> exit status`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return _run(argv[0], argv[1:])
    parser = ArgumentParser(
        "distopt",
        description="Trains PyTorch models with paramwise optimizer groups, from one YAML file.",
        epilog="to train: torchrun --nproc_per_node=8 -m distopt.train cfg.yaml",
    )
    parser.add_argument("--version", action="version", version=f"distopt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    if argv:
        parser.parse_args(argv)
    parser.print_help(sys.stderr)
    return 2


def _run(command: str, argv: Sequence[str]) -> int:
    try:
        status: int = import_module(f"distopt.cli.{command}").main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; nor is Python to try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
