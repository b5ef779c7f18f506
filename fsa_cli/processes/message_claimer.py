"""Claim the runs whose messages a broker has delivered, and start them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError

from fsa_cli.ledger.claim_queued import claim_dispatched, requeue_dispatched
from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.launcher import Launcher
from fsa_cli.processes.lease import Lease
from fsa_cli.processes.outage import Outage

__all__ = ["MessageClaimer"]

_AGAIN_S = 0.2
_MOST = 500


class MessageClaimer:
    """Claims delivered runs; those that arrive together in one statement.

    Args:
        locks: The tasks that this process can run, and the lock of each.
    """

    def __init__(
        self,
        ledger: Ledger,
        lease: Lease,
        launcher: Launcher,
        outage: Outage,
        locks: Mapping[str, str | None],
    ) -> None:
        self._ledger = ledger
        self._lease = lease
        self._launcher = launcher
        self._outage = outage
        self._locks = locks
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._futures: dict[str, Future[None]] = {}
        self._come: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closed = self._ended = False
        self._thread = threading.Thread(target=self._serve, name="fsa claims", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def take(self, run_id: str) -> Future[None]:
        """Execute a delivered run; done when it has ended, or another process has it."""
        future: Future[None] = Future()
        with self._lock:
            # A message that comes twice runs once: the first one is being executed here.
            if self._ended or run_id in self._futures:
                future.set_result(None)
                return future
            self._futures[run_id] = future
        self._come.put(run_id)
        return future

    def ended(self, run_id: str) -> None:
        """Acknowledge the message of a run that has ended, or is not executed here."""
        with self._lock:
            future = self._futures.pop(run_id, None)
        if future is not None:
            _resolve(future)

    def stop(self) -> None:
        """Claim nothing more: runs that are delivered from now on are queued again."""
        self._closed = True
        if self._turn.acquire(timeout=5):  # what is being claimed has started
            self._turn.release()

    def let_go(self) -> None:
        """Acknowledge every message that still waits, and end the thread."""
        with self._lock:
            self._ended = True
        self._come.put(None)
        if self._thread.is_alive():
            self._thread.join(5)
        with self._lock:
            futures = list(self._futures.values())
            self._futures.clear()
        for each in futures:
            _resolve(each)

    def _serve(self) -> None:
        with self._ledger.keeping_a_connection():
            while self._serve_once():
                pass

    def _serve_once(self) -> bool:
        come = [self._come.get()]
        while not self._come.empty() and len(come) < _MOST:
            come.append(self._come.get())
        run_ids = [each for each in come if each is not None]
        begun = self._begin(run_ids) if run_ids else set()
        for each in run_ids:
            if each not in begun:
                self.ended(each)
        return not self._ended

    def _begin(self, run_ids: list[str]) -> set[str]:
        """The runs that have started here."""
        while not self._ended:
            with self._turn:
                if self._closed:
                    if self._outage.guard(lambda: self._give_back(run_ids)):
                        return set()
                elif self._lease.trusted:
                    taken = self._outage.guard(lambda: self._claim(run_ids))
                    if taken is not None:
                        return {each.run_id for each in taken if self._launcher.begin(each)}
            time.sleep(_AGAIN_S)
        return set()

    def _claim(self, run_ids: list[str]) -> list[ClaimedRun]:
        return claim_dispatched(self._ledger, self._lease.id, self._locks, run_ids)

    def _give_back(self, run_ids: list[str]) -> bool:
        requeue_dispatched(self._ledger, run_ids)
        return True


def _resolve(future: Future[None]) -> None:
    try:
        future.set_result(None)
    except InvalidStateError:  # the broker's worker waits no more
        return
