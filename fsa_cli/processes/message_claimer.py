"""From an engine's message to a run that this process makes."""

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
    """Claims the runs whose messages have come; those of one moment in one statement.

    Args:
        locks: The tasks that this process can run, and what each locks.
    """

    def __init__(
        self,
        ledger: Ledger,
        membership: Lease,
        launcher: Launcher,
        trouble: Outage,
        locks: Mapping[str, str | None],
    ) -> None:
        self._ledger = ledger
        self._membership = membership
        self._launcher = launcher
        self._trouble = trouble
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
        """Whether its thread is there."""
        return self._thread.is_alive()

    def take(self, run_id: str) -> Future[None]:
        """Make a run whose message has come; done when it has ended, or is not ours to make."""
        future: Future[None] = Future()
        with self._lock:
            # One that comes twice runs once; that it is being made here already is enough to know.
            if self._ended or run_id in self._futures:
                future.set_result(None)
                return future
            self._futures[run_id] = future
        self._come.put(run_id)
        return future

    def ended(self, run_id: str) -> None:
        """A run has ended, or will not be made here."""
        with self._lock:
            future = self._futures.pop(run_id, None)
        if future is not None:
            _resolve(future)

    def stop(self) -> None:
        """Claim nothing more: what comes from now on is queued again, for others."""
        self._closed = True
        if self._turn.acquire(timeout=5):  # what is being claimed has begun
            self._turn.release()

    def let_go(self) -> None:
        """Whatever still waits is over for the engine."""
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
        """Those that are being made here now."""
        while not self._ended:
            with self._turn:
                if self._closed:
                    if self._trouble.met(lambda: self._give_back(run_ids)):
                        return set()
                elif self._membership.trusted:
                    taken = self._trouble.met(lambda: self._claim(run_ids))
                    if taken is not None:
                        return {each.run_id for each in taken if self._launcher.begin(each)}
            time.sleep(_AGAIN_S)
        return set()

    def _claim(self, run_ids: list[str]) -> list[ClaimedRun]:
        return claim_dispatched(self._ledger, self._membership.id, self._locks, run_ids)

    def _give_back(self, run_ids: list[str]) -> bool:
        requeue_dispatched(self._ledger, run_ids)
        return True


def _resolve(future: Future[None]) -> None:
    try:
        future.set_result(None)
    except InvalidStateError:  # whoever waited for it has given up
        return
