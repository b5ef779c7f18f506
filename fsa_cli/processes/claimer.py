"""A thread that claims due instants and queued runs: for this process, or for a broker."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

from fsa_cli.ledger.records import ClaimResult, Due
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.lease import Lease
from fsa_cli.processes.outage import Outage
from fsa_cli.processes.schedule_plan import Scheduled

__all__ = ["Claimer", "Fired", "Skipped"]

_POLL_S = 1.0
# Older instants are left to the backfill, which knows whether a live node covered them.
_WINDOW_MS = 5000

#: A task and one of its instants.
Fired = tuple[Scheduled, int]
#: Called for each run that does not start: the task, the instant, the reason.
Skipped = Callable[[str, int, str], None]


class Claimer(ABC):
    """Claims instants as they come due, and queued runs every second.

    It claims nothing while the lease is not trusted, and tries again when the ledger was away.

    Args:
        skipped: Called for each instant that was recorded as skipped.
        thread: The thread's name.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        lease: Lease,
        outage: Outage,
        skipped: Skipped,
        thread: str,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lease = lease
        self._outage = outage
        self._skipped = skipped
        self._backlog: deque[Fired] = deque()
        self._claiming: list[Fired] = []
        self._wanted = threading.Condition()
        self._closed = False
        self._poll_at_s = 0.0
        self._asking = self._more_queued = self._waits_for_lock = False
        self.alone = True
        """Whether no other replica that fires the same instants is known."""
        self._thread = threading.Thread(target=self._serve, name=thread, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """Whether it has looked, and found nothing more to claim."""
        asked = self._poll_at_s > 0.0 and not self._more_queued and not self._asking
        return asked and not self._backlog and not self._claiming

    @property
    def backlog(self) -> int:
        """How many due instants are not claimed yet."""
        return len(self._backlog)

    @property
    def waiting_since_ms(self) -> int:
        """The oldest instant that waits or is being claimed; now if there is none."""
        with self._wanted:
            instants = [instant for _, instant in (*self._backlog, *self._claiming)]
        return min(instants, default=self._clock.now_ms)

    def fire(self, due: Sequence[Fired]) -> None:
        """Claim these instants, which have come due."""
        with self._wanted:
            self._backlog.extend(due)
            self._wanted.notify()

    def poll(self) -> None:
        """Look at the queue at once."""
        with self._wanted:
            self._poll_at_s = 0.0
            self._wanted.notify()

    def released(self) -> None:
        """Look for queued runs whose lock is free now that runs have ended."""
        if self._waits_for_lock:
            self._waits_for_lock = False
            self.poll()

    def forget(self, swept: set[tuple[str, int]]) -> None:
        """Drop these instants: each has a row now."""
        with self._wanted:
            self._backlog = deque(each for each in self._backlog if _key(each) not in swept)

    def close(self) -> None:
        """Claim nothing more."""
        with self._wanted:
            self._closed = True
            self._wanted.notify()
        if self._thread.is_alive():
            self._thread.join(5)

    @abstractmethod
    def _room(self) -> int:
        """How many more it may claim now."""

    @abstractmethod
    def _claim(self, due: Sequence[Fired]) -> bool:
        """Claim due instants; true, as None would mean that the ledger was away."""

    @abstractmethod
    def _claim_queued(self, room: int) -> bool:
        """Claim up to *room* queued runs; whether there may be more to claim."""

    def _settle(self, due: Sequence[Fired], outcome: ClaimResult) -> None:
        """Report skipped instants; put back those that are early by the database's clock."""
        for each in outcome.skipped:
            self._skipped(each.task, each.scheduled_ms, "the run before it has not ended")
        if outcome.early:
            early = {each.key for each in outcome.early}
            self._put_back([each for each in due if _key(each) in early])
            time.sleep(0.01)

    def _asked(self, due: Sequence[Fired]) -> tuple[list[Due], int]:
        """The instants as the ledger takes them, and how old one may be, in milliseconds."""
        asked = [scheduled.due(instant, self._ledger.namespace) for scheduled, instant in due]
        return asked, _WINDOW_MS + max(scheduled.jitter_ms for scheduled, _ in due)

    def _serve(self) -> None:
        with self._ledger.keeping_a_connection():
            while self._serve_once():
                pass

    def _serve_once(self) -> bool:
        """Claim what is there, or wait; False once it is closed."""
        with self._wanted:
            while not self._closed and not self._has_work():
                pause_s = self._look_at_s() - time.monotonic()
                self._wanted.wait(max(pause_s, 0.01) if self._lease.trusted else 0.1)
            if self._closed:
                return False
            room = self._room_for_fired()
            self._claiming = due = [
                self._backlog.popleft() for _ in range(min(room, len(self._backlog)))
            ]
        if due:
            claimed = self._outage.guard(lambda: self._claim(due))
            if claimed is None:
                self._put_back(due)
            self._claiming = []
            if claimed is None:
                time.sleep(0.2)
                return True
        if self._wants_queue() and self._lease.trusted:
            # Not in step with the schedule: a task of each second holds its lock at the same
            # moment of each, and what is queued would not find it free for a minute.
            self._asking = True
            self._poll_at_s = time.monotonic() + _POLL_S * random.uniform(0.6, 1.0)
            self._more_queued = bool(self._outage.guard(self._take_queued))
            self._asking = False
        return True

    def _take_queued(self) -> bool:
        room = self._room()
        return room > 0 and self._claim_queued(room)

    def _has_work(self) -> bool:
        if not self._lease.trusted:
            return False
        return bool(self._backlog and self._room_for_fired() > 0) or self._wants_queue()

    def _look_at_s(self) -> float:
        """When to look for work without being notified."""
        return self._poll_at_s

    def _room_for_fired(self) -> int:
        """How many due instants it may claim now."""
        return self._room()

    def _wants_queue(self) -> bool:
        return (self._more_queued and self._room() > 0) or time.monotonic() >= self._poll_at_s

    def _put_back(self, due: Sequence[Fired]) -> None:
        with self._wanted:
            self._backlog.extendleft(reversed(due))


def _key(fired: Fired) -> tuple[str, int]:
    scheduled, instant = fired
    return scheduled.task.name, instant
