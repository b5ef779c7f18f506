"""Signal handlers that act in the process that set them, and in none that is forked from it.

A fork inherits handlers and the descriptor that signals are written to: `terminate()` of a
`multiprocessing.Process` did nothing in a task, and woke its parent instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["ENDING", "handling", "hearing"]

Handler = Callable[[int, FrameType | None], object]

#: What ends a process in order: a stop, and a terminal that is closed.
ENDING = signal.SIGTERM, signal.SIGHUP

# What is set now, with what was there before; the latest last.
_handlers: list[tuple[int, Handler, Any]] = []
_wakeup_fds: list[int] = []
_listeners: list[Callable[[int], object]] = []
_is_watched = False


@contextlib.contextmanager
def handling(handler: Handler, *numbers: int) -> Iterator[None]:
    """While inside, *handler* is called for these signals; in the main thread only.

    SIGHUP stays ignored where it is: the process was started by `nohup`.
    """
    _watch_forks()
    entries = []
    try:
        for number in numbers:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            entry = (number, handler, signal.signal(number, handler))
            _handlers.append(entry)
            entries.append(entry)
        yield
    finally:
        for entry in reversed(entries):
            if entry in _handlers:
                _handlers.remove(entry)
                number, _, previous = entry
                signal.signal(number, previous)


@contextlib.contextmanager
def hearing(heard: Callable[[int], object]) -> Iterator[None]:
    """While inside, *heard* is called with the number of each signal, in a thread of its own.

    Also while the main thread waits in C, where no handler is called. In the main thread only, and
    unless somebody else, as an event loop's `add_signal_handler`, hears of signals already.
    """
    with contextlib.ExitStack() as stack:
        if not _listeners:
            reading, writing = socket.socketpair()
            writing.setblocking(False)
            listener = threading.Thread(target=_listen, args=(reading,), daemon=True)
            listener.start()
            stack.callback(reading.close)
            stack.callback(listener.join)
            stack.callback(writing.close)
            # To close it ends nothing where a process that was forked meanwhile has it too.
            stack.callback(writing.shutdown, socket.SHUT_RDWR)
            stack.enter_context(_waking(writing.fileno()))
        _listeners.append(heard)
        try:
            yield
        finally:
            if heard in _listeners:
                _listeners.remove(heard)


def _listen(reading: socket.socket) -> None:
    while number := reading.recv(1):
        for heard in _listeners.copy():
            threading.Thread(target=heard, args=(number[0],), daemon=True).start()


@contextlib.contextmanager
def _waking(descriptor: int) -> Iterator[None]:
    """While inside, the numbers of signals are written to *descriptor*, unless somebody has one."""
    _watch_forks()
    before = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    if before != -1:  # somebody else has to hear of signals
        signal.set_wakeup_fd(before)
        yield
        return
    _wakeup_fds.append(descriptor)
    try:
        yield
    finally:
        if descriptor in _wakeup_fds:
            _wakeup_fds.remove(descriptor)
            signal.set_wakeup_fd(-1)


def _watch_forks() -> None:
    global _is_watched
    if not _is_watched:
        os.register_at_fork(after_in_child=_restore)
        _is_watched = True


def _restore() -> None:
    """In a forked child: what was there before. The child's one thread is its main thread."""
    _listeners.clear()
    if _wakeup_fds:
        _wakeup_fds.clear()
        signal.set_wakeup_fd(-1)
    while _handlers:
        number, handler, previous = _handlers.pop()
        if signal.getsignal(number) is handler:
            signal.signal(number, previous)
    # asyncio.run's handler cancels the parent's loop, which does not run here.
    of_asyncio = getattr(signal.getsignal(signal.SIGINT), "func", None)
    if getattr(of_asyncio, "__func__", None) is asyncio.Runner._on_sigint:  # type: ignore[attr-defined]
        signal.signal(signal.SIGINT, signal.default_int_handler)
