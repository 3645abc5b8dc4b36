"""Settings of the whole test suite; `tests.kit` holds the tools."""

from __future__ import annotations

import os

import hypothesis
import pytest

# Before torch is imported: on two cores, ranks and tests that compute side by side would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("distopt", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("distopt")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from all tests but those marked gpu: the ranks of the others meet over gloo."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, or none is shown."""
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if needs_gpu and not _cuda_is_available():
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and `make test-gpu`"))


def _cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()
