"""Which operators of a trace take most time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

_ON_GPU: Final = ("kernel", "gpu_memcpy", "gpu_memset")
_SHOWN: Final = 10


def table(events: Iterable[Mapping[str, Any]]) -> str:
    """A short table: of what runs on the GPU where the trace has that, else of the CPU's operators.

    Args:
        events: The `traceEvents` of a Chrome trace of torch's profiler.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    spans = [event for event in complete if event.get("cat") in _ON_GPU]
    where, spans = ("GPU", spans) if spans else ("CPU", [e for e in complete if e.get("cat") == "cpu_op"])
    own, calls = own_times(spans), Counter(span["name"] for span in spans)
    total = own.total() or 1.0
    lines = [f"{'on the ' + where:<60} {'calls':>7} {'ms':>10} {'share':>6}"]
    for name, spent in own.most_common(_SHOWN):
        lines.append(f"{name[:60]:<60} {calls[name]:>7} {spent / 1000:>10.3f} {spent / total:>6.1%}")
    return "\n".join(lines)


def own_times(spans: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Name → microseconds in it, without those in what it called; float values.

    Args:
        spans: Of one thread or stream (`tid`) they lie beside or within each other.
    """
    own: Any = Counter()
    callers: defaultdict[Any, list[tuple[str, float]]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: (span["ts"], -span["dur"])):
        stack, name, begin, duration = callers[span["tid"]], span["name"], span["ts"], span["dur"]
        while stack and stack[-1][1] <= begin:
            stack.pop()
        if stack:
            own[stack[-1][0]] -= duration
        own[name] += duration
        stack.append((name, begin + duration))
    return own  # type: ignore[no-any-return]
