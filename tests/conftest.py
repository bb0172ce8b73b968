"""What all tests share: device checks are skipped, with the reason, where there is no device."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import Phase, settings

settings.register_profile("no explanations", phases=[phase for phase in Phase if phase != Phase.explain])  # they take minutes
settings.load_profile("no explanations")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``-m gpu`` selects the device checks; without a GPU they are skipped and say so."""
    if Path("/proc/driver/nvidia/version").exists() or Path("/dev/kfd").exists():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


@pytest.fixture(scope="module", autouse=True)
def nothing_old_is_garbage() -> None:
    """Measuring collects garbage before it begins: what libraries and tests hold for good is not looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other make tiny work slow where others have the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
