"""What a run tells: console, TensorBoard, JSONL, status and logs. docs/monitoring.md says what is where."""

from distopt.monitor.console import Console, open_console
from distopt.monitor.hparams import Session, flattened
from distopt.monitor.logs import rank_log
from distopt.monitor.monitor import Monitor
from distopt.monitor.status import StatusFile, read_status, record_failure
from distopt.monitor.throughput import Throughput

__all__ = [
    "Console",
    "Monitor",
    "Session",
    "StatusFile",
    "Throughput",
    "flattened",
    "open_console",
    "rank_log",
    "read_status",
    "record_failure",
]
