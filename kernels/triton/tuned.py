"""One of the configurations that the code gate holds fit for an architecture, chosen for the run (`clustergauge.tuning`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from triton import OutOfResources

from clustergauge import tuning
from clustergauge.probe import Context, Skip

T = TypeVar("T")


def choose(ctx: Context, what: str, candidates: Mapping[str, T], start: Callable[[T], tuning.Calls]) -> T:
    """As `clustergauge.tuning.choose`, for this device's model.  ``what``: kernel, dtype and shape.

    What does not fit this very device (one of the family with less shared memory) is passed over.  Raises `Skip` where nothing
    fits, or not what a pin names.
    """
    model = torch.cuda.get_device_name(torch.device(ctx.device)) if ctx.kind == "cuda" else "cpu"
    try:
        chosen = tuning.choose(ctx, f"{what} on {model}", candidates, start, (OutOfResources,))
    except tuning.Unfit as unfit:
        raise Skip(too_large(model, [error for error in unfit.refusals if isinstance(error, OutOfResources)])) from None
    if ctx.kind == "cuda" and ctx.settings.get("tuned") != "measured":
        attempt(ctx, start(chosen)[0])
    return chosen


def attempt(ctx: Context, call: Callable[[], object]) -> None:
    """Run once.  Raises `Skip` where the kernel does not fit the device."""
    try:
        call()
    except OutOfResources as error:
        raise Skip(too_large(torch.cuda.get_device_name(torch.device(ctx.device)), [error])) from None


def too_large(model: str, refusals: Sequence[OutOfResources]) -> str:
    """Why none of the kernels that were refused runs on a device, by the one that needs least."""
    least = min(refusals, key=lambda error: error.required)
    unit = {"shared memory": "bytes of "}.get(least.name, "")
    return f"the kernel needs {least.required} {unit}{least.name}, a block on {model} has {least.limit}"
