"""Claim the runs whose messages a broker has delivered, and start them."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, InvalidStateError
from functools import partial

from fsa_cli.ledger.claim_dispatched import claim_dispatched, requeue_dispatched
from fsa_cli.ledger.records import RunOutcome
from fsa_cli.processes.events import NodeListener
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.run_lifecycle import RunLifecycle
from fsa_cli.processes.service import ServiceThread
from fsa_cli.runner.outcome import encode_result
from fsa_cli.runner.run import Run, RunResult

__all__ = ["MessageClaimer"]

_AGAIN_S = 0.2
_MOST = 500
_SHOWN = 60
_RUN_ID = re.compile(r"[0-9a-f-]{32,36}")


class MessageClaimer(ServiceThread, NodeListener):
    """Claims delivered runs; those that arrive together in one statement.

    Args:
        locks: The tasks that this process can run, and the lock of each.
    """

    def __init__(
        self, context: NodeContext, lifecycle: RunLifecycle, locks: Mapping[str, str | None]
    ) -> None:
        super().__init__("message claims")
        self._context = context
        self._lifecycle = lifecycle
        self._locks = locks
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._futures: dict[str, Future[None]] = {}
        self._come: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closed = False

    def take(self, run_id: object) -> Future[None]:
        """Execute a delivered run; done when it has ended, or another process has it.

        Args:
            run_id: As the message says it. A message that names no run is dropped with a warning.
        """
        future: Future[None] = Future()
        if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
            told = encode_result(run_id) or "null"  # bounded, whatever it is
            reason = f"its run_id is {told[:_SHOWN]}, not a run's"
            self._context.events.warned(f"a message is dropped: {reason}")
            future.set_result(None)
            return future
        with self._lock:
            # A message that comes twice runs once: the first one is being executed here.
            if self._stopping.is_set() or run_id in self._futures:
                future.set_result(None)
                return future
            self._futures[run_id] = future
        self._come.put(run_id)
        return future

    def run_finished(self, run: Run, result: RunResult | None, outcome: RunOutcome | None) -> None:
        """Acknowledge the message of a run that has ended."""
        self._acknowledge(run.run_id)

    def run_not_started(
        self, task: str, instant_ms: int, status: str, reason: str, run_id: str | None = None
    ) -> None:
        """Acknowledge the message of a run that will not start."""
        if run_id is not None:
            self._acknowledge(run_id)

    def quiesce(self) -> None:
        """Claim nothing more: runs that are delivered from now on are queued again."""
        self._closed = True
        if self._turn.acquire(timeout=5):  # what is being claimed has started
            self._turn.release()

    def stop(self, within_s: float = 5.0) -> None:
        """Acknowledge every message that still waits, and end the thread."""
        super().stop(within_s)
        with self._lock:
            futures = list(self._futures.values())
            self._futures.clear()
        for each in futures:
            _resolve(each)

    def _wake(self) -> None:
        self._come.put(None)

    def _acknowledge(self, run_id: str) -> None:
        with self._lock:
            future = self._futures.pop(run_id, None)
        if future is not None:
            _resolve(future)

    def _serve(self) -> None:
        with self._context.ledger.keeping_a_connection():
            while not self._stopping.is_set():
                self._serve_once()

    def _serve_once(self) -> None:
        come = [self._come.get()]
        while not self._come.empty() and len(come) < _MOST:
            come.append(self._come.get())
        run_ids = [each for each in come if each is not None]
        started = self._start(run_ids) if run_ids else set()
        for each in run_ids:
            if each not in started:
                self._acknowledge(each)

    def _start(self, run_ids: Collection[str]) -> set[str]:
        """The runs that have started here."""
        while not self._stopping.is_set():
            with self._turn:
                refused: list[Exception] = []

                def note(error: Exception, refused: list[Exception] = refused) -> set[str]:
                    refused.append(error)
                    return set()

                if self._closed or self._context.lease.trusted:
                    work = partial(self._give_back if self._closed else self._claim, run_ids)
                    done = self._context.outage.guard(work, note)
                    if refused:
                        break
                    if done is not None:
                        return done
            time.sleep(_AGAIN_S)
        else:
            return set()
        if len(run_ids) == 1:  # its message is sent again later, and the others go on
            self._context.outage.note_refusal(work, refused[0])
            return set()
        return {run_id for each in run_ids for run_id in self._start([each])}

    def _claim(self, run_ids: Collection[str]) -> set[str]:
        ledger, node_id = self._context.ledger, self._context.lease.id
        with self._lifecycle.claiming() as token:
            taken = claim_dispatched(ledger, node_id, self._locks, run_ids, token=token)
            active = self._lifecycle.add(taken)
        return {each.claim.run_id for each in active if self._lifecycle.start(each)}

    def _give_back(self, run_ids: Collection[str]) -> set[str]:
        requeue_dispatched(self._context.ledger, run_ids)
        return set()


def _resolve(future: Future[None]) -> None:
    try:
        future.set_result(None)
    except InvalidStateError:  # the broker's worker waits no more
        return
