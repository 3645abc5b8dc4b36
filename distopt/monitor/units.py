"""Numbers as people read them."""

from __future__ import annotations


def count(number: int) -> str:
    """`644,480`; from ten million on `8.03B`."""
    return f"{number:,}" if number < 10_000_000 else compact(number)


def compact(number: float) -> str:
    """Three digits and a suffix: `87.2`, `12.3k`, `1.24M`."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return _three_digits(number / size) + suffix
    return _three_digits(number)


def percent(share: float) -> str:
    """`98.9%`; what is little but not nothing is `<0.1%`."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def metric(value: float) -> str:
    """A loss or a score: `3.2103`; very large or very small ones as `1.234e+05`."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def step_time(seconds: float) -> str:
    """`21.3 ms`, `1.52 s`."""
    return f"{_three_digits(seconds * 1e3)} ms" if seconds < 1 else f"{_three_digits(seconds)} s"


def duration(seconds: float) -> str:
    """`1:32`, `2:05:10`, `3d 04:05:10`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _three_digits(number: float) -> str:
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"
