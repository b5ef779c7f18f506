"""`ServiceThread`: start, stop and alive of everything that a node keeps a thread for."""

from __future__ import annotations

import threading
from typing import Protocol

__all__ = ["Service", "ServiceThread"]


class Service(Protocol):
    """A part of a node: started in order, stopped in reverse."""

    name: str

    @property
    def alive(self) -> bool:
        """Whether it does its work; if not, the process should be restarted."""
        ...

    def start(self) -> None: ...

    def quiesce(self) -> None:
        """Take no new work; what was taken goes on."""
        ...

    def stop(self) -> None: ...


class ServiceThread:
    """A daemon thread that must live while its node does.

    Args:
        name: What the thread does, in one or two words.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"fsa {name}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def quiesce(self) -> None:
        """Take no new work."""

    def stop(self, within_s: float = 5.0) -> None:
        """End the thread; wait for it, *within_s* at most."""
        self._stopping.set()
        self._wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(within_s)

    def _wake(self) -> None:
        """Have the thread see that it is to end."""

    def _serve(self) -> None:
        raise NotImplementedError
