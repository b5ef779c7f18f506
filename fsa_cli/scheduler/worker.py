"""`fsa worker start`: makes the runs whose messages an engine brings, or those of the queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any

from fsa_cli.exceptions import EngineUnreachable
from fsa_cli.executors.base import Executor, Take
from fsa_cli.ledger import sweep
from fsa_cli.runner import Run, RunResult
from fsa_cli.scheduler.host import Host, Part
from fsa_cli.scheduler.taker import Taker

__all__ = ["Consumer", "Worker"]

_AGAIN_S = 1.0
_LAST_WITHIN_S = 1.0
_JOINED_WITHIN_S = 2.0


class Worker(Host):
    """A node that fires nothing. It takes over for the dead and records as the scheduler does.

    Args:
        executor: Whose messages it takes; one that carries nothing: the ledger's queue.
        queues: Of the engine.
    """

    def __init__(self, *, executor: Executor, queues: Collection[str], **more: Any) -> None:
        super().__init__(role="worker", **more)
        self.taker = Taker(self._ledger, self.membership, self._launcher, self.trouble, self._locks)
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
    def _parts(self) -> Mapping[str, Part]:
        work: dict[str, Part] = {"the claims'": self.dispatcher}
        if self._carries:
            work = {"the claims'": self.taker, f"{self.consumer.name}'s": self.consumer}
        return {**work, "the hand-over's": self.courier, **self._common_parts}

    def _begin(self, *, consumes: bool = True) -> None:
        sweep.register(self._ledger, self._known)
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


class Consumer:
    """The engine's own worker, in a thread; started again when the engine was away.

    Args:
        warn: Puts a line in front of a person.
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
        """Whether its thread is there."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more messages, from now on."""
        self._stop.set()

    def join(self, within_s: float) -> None:
        """Wait until the engine's worker has ended."""
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
            except EngineUnreachable as exc:
                if not self._away:
                    self._away = True
                    self._warn(exc.message)
            self._stop.wait(_AGAIN_S)

    def _noting(self, run_id: str) -> Future[None]:
        if self._away:
            self._away = False
            self._warn(f"{self.name} can be reached again")
        return self._take(run_id)
