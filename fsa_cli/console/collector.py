"""The garbage collector, which waits while a page is made."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]

_pausing = threading.Lock()


@contextmanager
def uncollected() -> Iterator[None]:
    """Have no garbage collected inside, but for what another thread's end of this lets in.

    A page makes thousands of objects and lets them go at its end, with no cycles. What the
    collector meets meanwhile it takes for what stays, and after a dozen pages it looks through all
    that the app has: 60 ms in the middle of one.
    """
    pauses = _pausing.acquire(blocking=False)
    if not pauses:
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        _pausing.release()
