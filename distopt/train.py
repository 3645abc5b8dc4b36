"""`python -m distopt.train cfg.yaml [key=value …]`: arguments → config → Runner, nothing more."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distopt.cli.arguments import NOTES, config_parser
from distopt.cli.exit import follow, report
from distopt.errors import ConfigError, PeerError
from distopt.faults import end_with_parent

if TYPE_CHECKING:
    from distopt.config import Config

DESCRIPTION = "Trains what a config describes, on as many ranks as torchrun starts, or on one without it."
EPILOG = f"""\
examples
  torchrun --standalone --nproc_per_node=2 -m distopt.train cfg.yaml
  torchrun --standalone --nproc_per_node=2 -m distopt.train cfg.yaml strategy=fsdp max_steps=50
  python -m distopt.train cfg.yaml

run directory (work_dir, by default runs/<name of the config>)
  config.yaml  plan.json  environment.json  metrics.jsonl  tensorboard/  checkpoints/  logs/  status.json
  The same command continues a run from its newest checkpoint. The config wins, and what differs from the
  checkpoint is printed: see resume_groups, resume_strict and resume_rename.

{NOTES}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, and returns the exit status."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    args = config_parser("python -m distopt.train", DESCRIPTION, EPILOG).parse_intermixed_args(argv)

    # Each import waits for what can be said before it: --help needs no config, a mistake in it no torch.
    from distopt.cli.preflight import preflight
    from distopt.config import load_config

    try:
        config = load_config(args.config, args.overrides)
        preflight(config, world=int(os.environ.get("WORLD_SIZE", "1")))
    except ConfigError as error:
        return report(error)

    from torch.distributed.elastic.multiprocessing.errors import record

    return record(_train)(config) or 0  # record writes what torchrun reports as the root cause of a failure


def _train(config: Config) -> int:
    from distopt.checkpoint.directory import newest
    from distopt.failures import tell_before_the_group
    from distopt.faults import Stopped, stop_signals
    from distopt.runner import Runner

    with stop_signals():
        try:
            Runner(config).train()
        except ConfigError as error:
            tell_before_the_group(error)
            return report(error.located(config.locate))
        except Stopped as stopped:
            if os.environ.get("RANK", "0") == "0":
                saved = newest(config.work_dir)
                then = f"the same command continues from {saved}" if saved else "no checkpoint was saved yet"
                sys.stderr.write(f"stopped by {stopped}: {then}\n")
            return 128 + stopped.number
        except PeerError:
            return follow()
        except SystemExit as left:
            fault = RuntimeError(f"exit({left.code!r}) was called in the middle of a run")
            tell_before_the_group(fault)
            raise fault from left
        except Exception as error:
            tell_before_the_group(error)
            raise
    return 0


if __name__ == "__main__":
    try:
        status = main()
    finally:
        # Seen once in many runs: a rank that was done, and did not exit. No node is to be held for that.
        faulthandler.dump_traceback_later(60, exit=True, file=2)
    sys.exit(status)
