"""One of the configurations that the code gate holds fit for an architecture, chosen for the run (`clustergauge.tuning`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from triton import OutOfResources

from clustergauge import tuning
from clustergauge.probe import Context

T = TypeVar("T")


def choose(ctx: Context, what: str, candidates: Mapping[str, T], start: Callable[[T], tuning.Calls]) -> T:
    """As `clustergauge.tuning.choose`, for this device's model.  ``what``: kernel, dtype and shape.

    What does not fit this very device (one of the family with less shared memory) is passed over.
    """
    model = torch.cuda.get_device_name(torch.device(ctx.device)) if ctx.kind == "cuda" else "cpu"
    return tuning.choose(ctx, f"{what} on {model}", candidates, start, (OutOfResources,))
