"""What the user's code raises is said in terms of the user's code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distopt.errors import ConfigError, describe


@contextmanager
def blaming(key: str, what: str) -> Iterator[None]:
    """Makes a ConfigError at `key` of what the block, a call of the user's `what`, raises."""
    try:
        yield
    except Exception as error:
        raise blamed(key, what, error) from error


def blamed(key: str, what: str, error: Exception) -> ConfigError:
    """What `blaming` raises; for where a context would take time at each sample."""
    return ConfigError(key, f"{what} raised {describe(error)}")
