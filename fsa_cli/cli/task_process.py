"""What a process does while it runs one task: SIGTERM ends it, its output goes to stderr."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from fsa_cli.cli.fsa_context import Fsa
    from fsa_cli.exceptions import FsaError

__all__ = ["TerminationSignal", "leave", "prints_to_stderr", "terminable"]

# So long a process has to end at a second signal.
_NOW_S = 2.0


class TerminationSignal(KeyboardInterrupt):
    """Raised on SIGTERM and SIGHUP. Like Ctrl-C it reaches the task wherever it is, and psycopg
    handles it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def terminable(again: Callable[[signal.Signals], NoReturn]) -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the task as Ctrl-C does.

    Args:
        again: Ends the process at a second signal, where that has not done so by itself: the main
            thread waits in C for a server that does not answer.
    """
    signals: list[int] = []
    ended = threading.Event()

    def heard(number: int) -> None:
        if number in (*ENDING, signal.SIGINT):
            signals.append(number)
            if len(signals) == 2 and not ended.wait(_NOW_S):
                again(signal.Signals(number))

    def terminate(number: int, frame: FrameType | None) -> None:
        raise TerminationSignal(number)

    from fsa_cli.runner.signal_handlers import ENDING, handling, hearing

    with handling(terminate, *ENDING), hearing(heard):
        try:
            yield
        finally:
            ended.set()


def leave(fsa: Fsa, error: FsaError) -> NoReturn:
    """End the process now: a thread that hangs must not hold it up."""
    fsa.output.error(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(error.exit_code)


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
