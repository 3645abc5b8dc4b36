"""How long it takes to begin: importing distopt beside importing torch, and the time to the first step.

    python benchmarks/startup.py

Each is a fresh process, or two under torchrun, in turns with what it is compared to.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import monotonic

from distopt.callbacks import Callback, Run

ROOT = Path(__file__).parents[1]
IMPORTS = {
    "hand": "import torch",
    "import distopt": "import torch, distopt",
    "the runner and all that it stands on": "import torch, distopt; distopt.Runner",
}

CONFIG = """\
work_dir: {folder}/run
model: {{type: ByteGPT, width: 96, depth: 2, tie: false}}
data: {{train: {{type: benchmarks.overhead:Windows, context: 64}}, batch_size: 32}}
max_steps: 1
optimizer: {{type: AdamW, lr: 1e-3, fused: true}}
callbacks: [{{type: "benchmarks.startup:Arrival", path: {folder}/arrival}}]
"""

HAND = """\
import os
import time
from pathlib import Path
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from distopt.models import ByteGPT
dist.init_process_group("gloo")
model = DistributedDataParallel(ByteGPT(width=96, depth=2, tie=False))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
data = TensorDataset(torch.randint(256, (2048, 65)))
[batch] = next(iter(DataLoader(data, 16, sampler=DistributedSampler(data))))
model(batch)["loss"].backward()
optimizer.step()
Path("{folder}/arrival").write_text(str(time.monotonic()))
dist.barrier()
os._exit(0)  # not in gloo's threads, which may abort a process that ends by itself
"""


class Arrival(Callback):
    """Writes down when the first step was done."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_step(self, run: Run) -> None:
        self.path.write_text(str(monotonic()))


def seconds_to_import(code: str) -> float:
    """Of a fresh process, its start included."""
    began = monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return monotonic() - began


def seconds_to_first_step(what: str) -> float:
    """From the start of torchrun to the end of the first step; `what` is by hand, or else by distopt."""
    with tempfile.TemporaryDirectory() as folder:
        if what == "hand":
            path = Path(folder, "hand.py")
            path.write_text(HAND.format(folder=folder))
            program = [str(path)]
        else:
            path = Path(folder, "cfg.yaml")
            path.write_text(CONFIG.format(folder=folder))
            program = ["-m", "distopt.train", str(path)]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        began = monotonic()
        subprocess.run(
            [*torchrun, "--nproc_per_node=2", *program],
            check=True,
            cwd=ROOT,
            env=environ,
            capture_output=True,
        )
        return float(Path(folder, "arrival").read_text()) - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5, help="repetitions of each")
    args = parser.parse_args()
    imports: dict[str, list[float]] = {what: [] for what in IMPORTS}
    steps: dict[str, list[float]] = {"hand": [], "the first step of two ranks": []}
    for _ in range(args.pairs):
        for what, code in IMPORTS.items():
            imports[what].append(seconds_to_import(code))
        for what, times in steps.items():
            times.append(seconds_to_first_step(what))
    print("| | without distopt, s | with it, s | more, s | ratio |\n| --- | --- | --- | --- | --- |")
    for times in (imports, steps):
        hand, *others = times
        for name in others:
            print(line(name, median(times[hand]), median(times[name])))


def line(name: str, without: float, with_it: float) -> str:
    """A line of the table; times are medians, in seconds."""
    more, ratio = with_it - without, with_it / without
    return f"| {name} | {without:.2f} | {with_it:.2f} | {more:+.2f} | {ratio:.2f} |"


if __name__ == "__main__":
    main()
