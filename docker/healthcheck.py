"""Is this container's run well? Prints it in one line; exit status 0 or 1, as HEALTHCHECK and probes want.

    python3 healthcheck.py /workspace/runs

Stands alone and imports little: it is started twice a minute beside the training.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SILENCE = 300
"""Seconds without a word from a running run, which writes status.json every 15, until it counts as lost."""


def statuses(runs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every run directory at or below `runs`, with its status."""
    for folder, inside, files in os.walk(runs):
        if "status.json" in files:
            inside.clear()  # checkpoints and logs are many, and none is a run
            try:
                status = json.loads((Path(folder) / "status.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(status, dict):
                yield Path(folder), status


def health(runs: Path, host: str, now: datetime) -> tuple[bool, str]:
    """Whether the run that `host` wrote last is well, and what there is to say of it.

    Runs of other hosts in a shared folder are theirs to look after; of a run on several nodes, the one with
    rank 0 speaks.
    """
    own = [(folder, status) for folder, status in statuses(runs) if status.get("host") == host]
    if not own:
        return True, "no run yet"
    folder, status = max(own, key=lambda run: run[1]["updated"])
    said = f"{folder}: {status['state']} at step {status['step']}"
    if status["state"] == "failed":
        return False, f"{said}: {status['reason']}"
    silence = (now - datetime.fromisoformat(status["updated"])).total_seconds()
    if status["state"] == "running" and silence > SILENCE:
        return False, f"{said}, and silent for {silence:.0f} s"
    return True, said


if __name__ == "__main__":
    well, said = health(Path(sys.argv[1]), socket.gethostname(), datetime.now(UTC))
    print(said)
    sys.exit(not well)
