"""What the commands that take a config have in common on their command line."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from distopt import __version__

OVERRIDES = """\
overrides
  optimizer.lr=3e-4 param_scheduler.0.end=200 strategy=fsdp 'clip_grad={max_norm: 1.0}'
  set single keys of the config, in YAML, by their dotted name. List items have an index.
"""

NOTES = f"""\
{OVERRIDES}
exit status
  0  finished; or stopped by Ctrl-C, SIGTERM, SIGUSR1 or max_time, with a checkpoint from which the same
     command continues
  2  the input is wrong: one message says where, what was given and what is allowed
  130, 143, 138  stopped before the first step by Ctrl-C, SIGTERM or SIGUSR1
  anything else is a fault, with its traceback
"""


def config_parser(prog: str, description: str, epilog: str, **further: str) -> ArgumentParser:
    """A parser of `cfg.yaml [key=value …]`; use its `parse_intermixed_args`.

    Args:
        prog: The command.
        description: What it does.
        epilog: Examples and notes.
        **further: Arguments that stand between the config and the overrides: name → help.
    """
    parser = ArgumentParser(
        prog, description=description, epilog=epilog, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="cfg.yaml", help="what to train, and how")
    for name, text in further.items():
        parser.add_argument(name, metavar=name.upper(), help=text)
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="set a key of the config"
    )
    parser.add_argument("--version", action="version", version=f"distopt {__version__}")
    return parser
