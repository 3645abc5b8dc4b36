"""`distopt export`: a checkpoint's weights as one safetensors file."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from distopt.cli.exit import report
from distopt.cli.wording import counted
from distopt.errors import ConfigError

DESCRIPTION = """\
Writes the model's weights of a checkpoint into one safetensors file, whole, under the names that its author
gave them, whatever sharded or wrapped it. Verifies the checkpoint first. Needs memory for the weights."""
EPILOG = """\
examples
  distopt export runs/quickstart model.safetensors
  distopt export runs/quickstart/checkpoints/step_00000400 model.safetensors
  distopt export runs/quickstart averaged.safetensors --ema

A run directory stands for its newest checkpoint. A tied weight is in the file once; the metadata has its
other names, from which safetensors.torch.load_model(model, "model.safetensors") ties it again.

exit status
  0  written
  2  there is no such checkpoint, it is damaged, or it has no averaged weights
"""


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        "distopt export",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="a checkpoint or a run directory")
    parser.add_argument("out", type=Path, metavar="out.safetensors", help="the file to write")
    parser.add_argument("--ema", action="store_true", help="the averaged weights, of a run with `ema`")
    args = parser.parse_args(argv)  # before the imports, so that --help answers at once

    from distopt.checkpoint import directory

    try:
        checkpoint = directory.followed(args.checkpoint)
        if not directory.is_committed(checkpoint):
            newest = directory.newest(checkpoint)
            if newest is None:
                problem = f"{checkpoint} is no checkpoint, and no run directory that has one"
                raise ConfigError(
                    "", problem, allowed="…/checkpoints/step_NNNNNNNN or …/best, or a run directory"
                )
            checkpoint = newest

        from distopt.checkpoint.export import export

        count = export(checkpoint, args.out, averaged=args.ema)
    except ConfigError as error:
        return report(error)
    except OSError as error:
        return report(ConfigError("", f"{args.out} cannot be written: {error.strerror or error}"))
    print(
        f"{args.out}: {counted(count, 'tensor')} of {checkpoint}, {args.out.stat().st_size / 2**20:,.1f} MiB"
    )
    return 0
