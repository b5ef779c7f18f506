"""The broker's own worker, in a thread of this process."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future

from fsa_cli.exceptions import BrokerUnreachable
from fsa_cli.processes.message_claimer import MessageClaimer
from fsa_cli.processes.service import ServiceThread
from fsa_cli.runs.executor import Executor

__all__ = ["Consumer"]

_AGAIN_S = 1.0
_LAST_WITHIN_S = 1.0
_JOINED_WITHIN_S = 2.0


class Consumer(ServiceThread):
    """Hosts the broker's own worker; starts it again when the broker was away.

    Args:
        claimer: Takes the messages.
        warn: Shows a line to a person.
    """

    def __init__(
        self,
        executor: Executor,
        claimer: MessageClaimer,
        queues: Collection[str],
        concurrency: int,
        warn: Callable[[str], None],
    ) -> None:
        super().__init__(f"messages of {executor.name}")
        self._executor = executor
        self._claimer = claimer
        self._queues = queues
        self._concurrency = concurrency
        self._warn = warn
        self._away = False

    def quiesce(self) -> None:
        """Take no more messages."""
        self._stopping.set()

    def stop(self, within_s: float = _LAST_WITHIN_S) -> None:
        """Wait until the broker's worker has ended; it still delivers what it had fetched."""
        super().stop(within_s)
        self._claimer.stop()  # what it waits for does not end: it is acknowledged
        super().stop(_JOINED_WITHIN_S)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self._executor.consume(
                    self._noting,
                    queues=self._queues,
                    concurrency=self._concurrency,
                    stop=self._stopping,
                )
            except BrokerUnreachable as exc:
                if not self._away:
                    self._away = True
                    self._warn(exc.message)
            self._stopping.wait(_AGAIN_S)

    def _noting(self, run_id: str) -> Future[None]:
        if self._away:
            self._away = False
            self._warn(f"{self._executor.name} can be reached again")
        return self._claimer.take(run_id)
