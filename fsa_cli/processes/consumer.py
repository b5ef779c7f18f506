"""The broker's own worker, in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future

from fsa_cli.exceptions import BrokerUnreachable
from fsa_cli.runs.executor import Executor, Take

__all__ = ["Consumer"]


_AGAIN_S = 1.0


class Consumer:
    """Hosts the broker's own worker; starts it again when the broker was away.

    Args:
        warn: Shows a line to a person.
    """

    def __init__(
        self,
        executor: Executor,
        take: Take,
        queues: Collection[str],
        concurrency: int,
        warn: Callable[[str], None],
    ) -> None:
        self.name = executor.name
        self._executor = executor
        self._take = take
        self._queues = queues
        self._concurrency = concurrency
        self._warn = warn
        self._stop = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._serve, name="fsa messages", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more messages."""
        self._stop.set()

    def join(self, within_s: float) -> None:
        """Wait until the broker's worker has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(within_s)

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                self._executor.consume(
                    self._noting,
                    queues=self._queues,
                    concurrency=self._concurrency,
                    stop=self._stop,
                )
            except BrokerUnreachable as exc:
                if not self._away:
                    self._away = True
                    self._warn(exc.message)
            self._stop.wait(_AGAIN_S)

    def _noting(self, run_id: str) -> Future[None]:
        if self._away:
            self._away = False
            self._warn(f"{self.name} can be reached again")
        return self._take(run_id)
