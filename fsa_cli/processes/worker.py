"""`fsa worker start`: execute the runs that a broker delivers, or those of the ledger's queue."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fsa_cli.ledger.backfill import register_tasks
from fsa_cli.processes.consumer import Consumer
from fsa_cli.processes.message_claimer import MessageClaimer
from fsa_cli.processes.node import Node, ServiceThread
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.runs.executor import Executor

__all__ = ["Worker"]

_LAST_WITHIN_S = 1.0
_JOINED_WITHIN_S = 2.0


class Worker(Node):
    """A node that fires no schedule. It reaps dead nodes and records as the scheduler does.

    Args:
        executor: Its messages are taken; of one without messages, the ledger's queue.
        queues: The broker's queues.
    """

    def __init__(self, *, executor: Executor, queues: Collection[str], **more: Any) -> None:
        super().__init__(role="worker", **more)
        self.message_claimer = MessageClaimer(
            self._ledger, self.lease, self._launcher, self.outage, self._locks
        )
        concurrency = self._options.concurrency
        self.consumer = Consumer(
            executor, self.message_claimer.take, queues, concurrency, self._listener.warn
        )
        self._carries = executor.carries

    def begin(self) -> None:
        """Take what a broker's worker in this process is delivered, until `end`."""
        self._carries = True
        self._begin(consumes=False)

    def end(self) -> None:
        """Wait for what runs, record it, and release the lease."""
        self._drain(None)

    @property
    def _parts(self) -> Mapping[str, ServiceThread]:
        work: dict[str, ServiceThread] = {"the local dispatcher's": self.local_dispatcher}
        if self._carries:
            work = {
                "the message claimer's": self.message_claimer,
                f"{self.consumer.name}'s": self.consumer,
            }
        return {**work, "the broker dispatcher's": self.broker_dispatcher, **self._common_parts}

    def _begin(self, *, consumes: bool = True) -> None:
        register_tasks(self._ledger, self._known)
        self.lease.join()
        self._settle()
        self.broker_dispatcher.start()
        self._maintenance.start()
        if self._carries:
            self.message_claimer.start()
            if consumes:
                self.consumer.start()
        else:
            self.local_dispatcher.start()

    def _halt(self) -> None:
        self.consumer.stop()
        self.message_claimer.stop()

    def _finished(self, run: Run, result: RunResult | None) -> None:
        try:
            super()._finished(run, result)
        finally:
            self.message_claimer.ended(run.run_id)

    def _ending(self) -> None:
        self.message_claimer.stop()
        self.consumer.join(_LAST_WITHIN_S)  # it still delivers what it had fetched
        self.message_claimer.let_go()
        self.consumer.join(_JOINED_WITHIN_S)
