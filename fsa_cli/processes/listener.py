"""Threads that hear of runs that are asked for, and have the queue looked at."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from fsa_cli.ledger import wake
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.service import ServiceThread

__all__ = ["FileWatch", "Listener"]

_LOOK_S = 1.0
_FILE_LOOKED_AT_EVERY_S = 0.1
_AGAIN_S = 5.0
_HEARD_WITHIN_S = 3.0
# Others have the pooler's session that listens, or it is no more.
_FORGET_EVERY_S = 0.1
_FORGET_TRIES = 50


class Listener(ServiceThread):
    """Calls *heard* when a run is committed. Where it hears nothing, polling finds the run.

    Args:
        deaf: Called once where nothing can be heard: the queue is to be looked at more often.
    """

    def __init__(
        self, context: NodeContext, heard: Callable[[], None], deaf: Callable[[], None]
    ) -> None:
        super().__init__("listener")
        self._waker: socket.socket | None = None
        self._context = context
        self._heard = heard
        self._deaf = deaf

    def _serve(self) -> None:
        ended, self._waker = socket.socketpair()
        with ended, self._waker:
            while not self._stopping.is_set():
                try:
                    if not self._listen(ended.fileno()):
                        return self._wait_deaf()
                except Exception:  # the database is away: others say so, and polling goes on
                    self._stopping.wait(_AGAIN_S)
        return None

    def _wake(self) -> None:
        if self._waker is not None:
            with contextlib.suppress(OSError):  # closed: it has ended
                self._waker.send(b"!")

    def _listen(self, ended: int) -> bool:
        """Hear until it is stopped; False where nothing comes through.

        Args:
            ended: A descriptor that can be read once it is stopped.
        """
        with wake.listening(self._context.ledger) as connection:
            wake.notify(self._context.ledger)
            heard = connection.wait(_HEARD_WITHIN_S, ended)
            if not heard:
                for _ in range(_FORGET_TRIES):
                    if connection.forget() or self._stopping.wait(_FORGET_EVERY_S):
                        break
                return self._stopping.is_set()
            self._heard()  # of what came while nobody listened
            while not self._stopping.is_set():
                if connection.wait(_LOOK_S, ended):
                    self._heard()
        return True

    def _wait_deaf(self) -> None:
        self._context.events.warned(
            "LISTEN does not come through to this process, as behind a pooler in transaction mode: "
            "it asks for new runs more than three times a second"
        )
        self._deaf()
        self._stopping.wait()


class FileWatch(ServiceThread):
    """Calls *changed* when somebody has written to SQLite's file: to look at it is no statement.

    Whatever it does not notice, polling finds.
    """

    def __init__(self, file: Path, changed: Callable[[], None]) -> None:
        super().__init__("file watch")
        self._files = [file, Path(f"{file}-wal")]
        self._changed = changed

    def _serve(self) -> None:
        before = self._seen()
        while not self._stopping.wait(_FILE_LOOKED_AT_EVERY_S):
            now = self._seen()
            if now != before:
                before = now
                self._changed()

    def _seen(self) -> Sequence[tuple[int, int] | None]:
        return [_stamp(each) for each in self._files]


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
