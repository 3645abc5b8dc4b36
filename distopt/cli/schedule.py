"""`distopt schedule`: shows how the options of the groups move over the run, without training."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distopt.cli.arguments import OVERRIDES, config_parser
from distopt.cli.exit import report
from distopt.cli.wording import counted
from distopt.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from distopt.config import Config
    from distopt.schedule import Schedule

DESCRIPTION = """\
Shows how lr, and every other option that an entry of param_scheduler moves, runs over the whole
training, as a table and as a plot. Builds the model without memory for its weights, and the data
only where the schedule counts in epochs."""
EPILOG = f"""\
examples
  distopt schedule cfg.yaml
  distopt schedule cfg.yaml --out schedule.png optimizer.lr=3e-4
  distopt schedule cfg.yaml --json --every 100 | jq '.rows[].lr'

{OVERRIDES}
exit status
  0  printed
  2  the input is wrong: one message says where, what was given and what is allowed
"""
_POINTS = 2000
"""At how many steps a curve is looked at."""


@dataclass(frozen=True)
class Run:
    """What a run will do to the options of its groups."""

    schedule: Schedule
    optimizer: torch.optim.Optimizer
    """A trial, with the groups of the run."""
    steps: int
    steps_per_epoch: int | None
    """None where it was not looked up, or the data does not tell."""


def main(argv: Sequence[str]) -> int:
    parser = config_parser("distopt schedule", DESCRIPTION, EPILOG)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also draw it to FILE: .png, .svg or .pdf (needs matplotlib)"
    )
    parser.add_argument("--log", action="store_true", help="draw lr on a logarithmic scale")
    parser.add_argument("--json", action="store_true", help="print the values of every step as JSON")
    parser.add_argument("--every", type=_count, metavar="N", help="with --json: of each N-th step")
    args = parser.parse_intermixed_args(argv)  # before the imports, so that --help answers at once
    if args.every and not args.json:
        parser.error("--every is for --json")

    from distopt.cli import figure
    from distopt.config import load_config
    from distopt.schedule.preview import edges, preview, spread

    try:
        if args.out:
            figure.check(args.out)  # before the model is built, which may take long
        config = load_config(args.config, args.overrides)
    except ConfigError as error:
        return report(error)
    try:
        with redirect_stdout(sys.stderr):  # what a model prints is no part of the table
            run = _plan(config)
    except ConfigError as error:
        return report(error.located(config.locate))
    looks = sorted(edges(run.schedule, run.steps) | spread(run.steps, 10) | spread(run.steps, _POINTS))
    rows = list(preview(run.schedule, run.optimizer, looks))
    if args.out:
        try:
            figure.draw(rows, args.out, title=f"{args.config}: {_length(run)}", log=args.log)
        except ConfigError as error:
            return report(error)
    if args.json:
        _print_json(run, args.every or 1)
        return 0

    from distopt.cli.curves import show

    notes = [f"drawn: {args.out}"] if args.out else []
    show(
        f"{args.config}: {_length(run)}",
        rows,
        edges(run.schedule, run.steps) | spread(run.steps, 10),
        log=args.log,
        notes=[*_notes(run), *notes],
        warnings=run.schedule.warnings,
    )
    return 0


def _plan(config: Config) -> Run:
    """Builds what the schedule is about.

    Raises:
        ConfigError: A part cannot be built, or the schedule does not do for this optimizer.
    """
    from distopt import parts
    from distopt.cli.data import run_length, train_batches
    from distopt.cli.model import model_without_memory
    from distopt.schedule import build_schedule
    from distopt.schedule.preview import needs_epochs

    steps_per_epoch = None
    if config.max_epochs or needs_epochs(config.param_scheduler):
        steps_per_epoch = train_batches(config, parts.train_dataset(config)).steps_per_epoch
    steps = run_length(config, steps_per_epoch)
    trial = parts.groups(config, model_without_memory(config)).trial()
    schedule = build_schedule(trial, config.param_scheduler, steps_per_epoch, steps)
    if not config.eval:
        schedule.check_metrics({})
    return Run(schedule, trial, steps, steps_per_epoch)


def _length(run: Run) -> str:
    steps = "1 step" if run.steps == 1 else f"{run.steps:,} steps"
    if run.steps_per_epoch is None:
        return steps
    epochs = run.steps / run.steps_per_epoch
    return f"{steps}, {epochs:.4g} epoch{'s' * (epochs != 1)} of {counted(run.steps_per_epoch, 'step')}"


def _notes(run: Run) -> Iterator[str]:
    from distopt.schedule.preview import plateaus

    if not run.schedule.windows:
        yield "note: nothing moves, param_scheduler is empty"
    for window in plateaus(run.schedule):
        yield (
            f"note: {window.key} lowers {window.param} where evaluation says so, which is not known:"
            " not in these values"
        )


def _print_json(run: Run, every: int) -> None:
    """One document with a row a line, written as it is computed: a long run has millions of values."""
    from distopt.schedule.preview import as_json, preview

    facts = {
        "max_steps": run.steps,
        "steps_per_epoch": run.steps_per_epoch,
        "warnings": run.schedule.warnings,
        "notes": [note.removeprefix("note: ") for note in _notes(run)],
    }
    sys.stdout.write(json.dumps(facts)[:-1] + ', "rows": [')
    steps = (step for step in range(1, run.steps + 1) if step % every == 0 or step in (1, run.steps))
    separator = "\n"
    for row in preview(run.schedule, run.optimizer, steps):
        sys.stdout.write(separator + json.dumps(as_json(row)))
        separator = ",\n"
    sys.stdout.write("\n]}\n")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text} is no number of steps")
    return int(text)
