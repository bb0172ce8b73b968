"""Memory that libraries keep after a case for themselves, given back: one case must not starve the next.

What one library keeps (torch's caching allocators of device and of pinned memory, CuPy's pools) is not free for another, nor
counted as free by the driver, and pinned memory is missing on the host.
"""

from __future__ import annotations

import gc
import sys
from typing import Any


def empty() -> None:
    """Give back what the libraries in this process keep, between cases.  Imports none and starts no device.

    Raises what they raise: a device on which this fails is not fit for the next case.
    """
    gc.collect()  # arrays in reference cycles (of a traceback, say) are still in use until then
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    torch.cuda.synchronize()  # what is still queued uses what we are about to give back
    torch.cuda.empty_cache()
    torch.accelerator.empty_host_cache()
    cupy: Any = sys.modules.get("cupy")
    if cupy is not None:
        with cupy.cuda.Device(torch.cuda.current_device()):
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()
