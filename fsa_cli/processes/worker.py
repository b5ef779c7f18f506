"""`fsa worker start`: makes the runs whose messages an engine brings, or those of the queue."""

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
    """A node that fires nothing. It takes over for the dead and records as the scheduler does.

    Args:
        executor: Whose messages it takes; one that carries nothing: the ledger's queue.
        queues: Of the engine.
    """

    def __init__(self, *, executor: Executor, queues: Collection[str], **more: Any) -> None:
        super().__init__(role="worker", **more)
        self.taker = MessageClaimer(
            self._ledger, self.membership, self._launcher, self.trouble, self._locks
        )
        concurrency = self._options.concurrency
        self.consumer = Consumer(
            executor, self.taker.take, queues, concurrency, self._listener.warn
        )
        self._carries = executor.carries

    def begin(self) -> None:
        """Take what another one's worker is brought, in its process, until `end`."""
        self._carries = True
        self._begin(consumes=False)

    def end(self) -> None:
        """Wait for what goes on, record it, and stop being a node."""
        self._drain(None)

    @property
    def _parts(self) -> Mapping[str, ServiceThread]:
        work: dict[str, ServiceThread] = {"the claims'": self.dispatcher}
        if self._carries:
            work = {"the claims'": self.taker, f"{self.consumer.name}'s": self.consumer}
        return {**work, "the hand-over's": self.courier, **self._common_parts}

    def _begin(self, *, consumes: bool = True) -> None:
        register_tasks(self._ledger, self._known)
        self.membership.join()
        self._settle()
        self.courier.start()
        self._chores.start()
        if self._carries:
            self.taker.start()
            if consumes:
                self.consumer.start()
        else:
            self.dispatcher.start()

    def _halt(self) -> None:
        self.consumer.stop()
        self.taker.stop()

    def _finished(self, run: Run, result: RunResult | None) -> None:
        try:
            super()._finished(run, result)
        finally:
            self.taker.ended(run.run_id)

    def _ending(self) -> None:
        self.taker.stop()
        self.consumer.join(_LAST_WITHIN_S)  # it still brings what it had in hand
        self.taker.let_go()
        self.consumer.join(_JOINED_WITHIN_S)
