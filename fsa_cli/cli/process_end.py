"""The end of a process in which tasks have left something running."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures.thread import _threads_queues

__all__ = ["end_soon"]

_END_S = 3.0
_AT_EXIT_S = 2.0


def end_soon(code: int, tell: Callable[[str], object]) -> None:
    """End the process with *code* in a few seconds, if the interpreter has not done so by then.

    It waits for every thread that is no daemon, and for functions of `atexit`. Those are called
    also where a thread keeps it from coming to them.

    Args:
        tell: Told what is left running.
    """
    began = threading.Event()
    atexit.register(began.set)  # the last to be registered is called first

    def end() -> None:
        time.sleep(_END_S)
        left = [each for each in threading.enumerate() if _is_waited_for(each)]
        names = ", ".join(each.name for each in left) or "a function of atexit"
        with contextlib.suppress(Exception):
            tell(f"the process ends without {names}, which goes on")
        if not began.is_set():
            functions = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
            functions.start()
            functions.join(_AT_EXIT_S)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)

    threading.Thread(target=end, name="fsa end", daemon=True).start()


def _is_waited_for(thread: threading.Thread) -> bool:
    # Those of an executor are joined whatever they are, and daemons where a run has begun them.
    is_joined = not thread.daemon or thread in _threads_queues
    return is_joined and thread is not threading.main_thread()
