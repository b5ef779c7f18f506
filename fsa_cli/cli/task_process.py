"""What a process does while it runs one task: SIGTERM ends it, its output goes to stderr."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

__all__ = ["TerminationSignal", "prints_to_stderr", "terminable"]


class TerminationSignal(KeyboardInterrupt):
    """Raised on SIGTERM. Like Ctrl-C it reaches the task wherever it is, and psycopg handles it."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM end the task as Ctrl-C does; also as PID 1, which would ignore it."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise TerminationSignal

    from fsa_cli.runner.signal_handlers import handling

    with handling(signal.SIGTERM, terminate):
        yield


@contextlib.contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Redirect the output of the task and its child processes to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
