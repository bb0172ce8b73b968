"""What all tests share: device checks are skipped, with the reason, where there is no device."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``-m gpu`` selects the device checks; without a GPU they are skipped and say so."""
    if Path("/proc/driver/nvidia/version").exists() or Path("/dev/kfd").exists():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))
