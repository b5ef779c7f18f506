"""A thread that claims due instants and queued runs: for this process, or for a broker."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from fsa_cli.ledger.records import ClaimResult, Due, RefusedClaim, RunOutcome
from fsa_cli.processes.events import NodeListener
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.schedule_plan import Scheduled
from fsa_cli.processes.service import ServiceThread
from fsa_cli.runner.run import Run, RunResult

__all__ = ["Claimer", "Fired"]

_POLL_S = 1.0
# Half of it, and the look itself, is how late a run starts; with what else an idle process sends
# it stays below five statements a second.
_OFTEN_S = 0.31
# Older instants are left to the backfill, which knows whether a live node covered them.
_WINDOW_MS = 5000
# A row that the database lets nobody change is tried again after so long.
_STUCK_S = 60.0
_MOST_STUCK = 1000

#: A task and one of its instants.
Fired = tuple[Scheduled, int]


class Claimer(ServiceThread, NodeListener, ABC):
    """Claims instants as they come due, and queued runs every second.

    It claims nothing while the lease is not trusted, and tries again when the ledger was away. An
    instant whose row the database refuses goes to the end, and the others are claimed.

    Args:
        name: Of its thread.
    """

    def __init__(self, context: NodeContext, name: str) -> None:
        super().__init__(name)
        self._context = context
        self._ledger = context.ledger
        self._lease = context.lease
        self._backlog: deque[Fired] = deque()
        self._claiming: list[Fired] = []
        self._wanted = threading.Condition()
        self._closed = False
        self._stuck: dict[str, float] = {}
        self._poll_at_s = 0.0
        self._poll_s = _POLL_S
        self._asking = self._more_queued = self._waits_for_lock = False
        self.alone = True
        """Whether no other replica that fires the same instants is known."""

    @property
    def idle(self) -> bool:
        """Whether it has looked, and found nothing more to claim."""
        asked = self._poll_at_s > 0.0 and not self._more_queued and not self._asking
        return asked and not self._backlog and not self._claiming

    @property
    def backlog(self) -> int:
        """How many due instants are not claimed yet; 0 once nothing is claimed any more."""
        return 0 if self._closed else len(self._backlog)

    @property
    def waiting_since_ms(self) -> int:
        """The oldest instant that waits or is being claimed; now if there is none."""
        with self._wanted:
            instants = [instant for _, instant in (*self._backlog, *self._claiming)]
        return min(instants, default=self._context.clock.now_ms)

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

    def poll_often(self) -> None:
        """Look at the queue more than three times a second: nothing wakes this process."""
        self._poll_s = _OFTEN_S
        self.poll()

    def outcomes_written(self) -> None:
        """Look for queued runs whose lock is free now that runs have ended."""
        if self._waits_for_lock:
            self._waits_for_lock = False
            self.poll()

    def forget(self, swept: set[tuple[str, int]]) -> None:
        """Drop these instants: each has a row now."""
        with self._wanted:
            self._backlog = deque(each for each in self._backlog if _key(each) not in swept)

    def run_finished(self, run: Run, result: RunResult | None, outcome: RunOutcome | None) -> None:
        """Look at the queue when a retry comes due, if that is before the next poll."""
        if outcome is not None and outcome.retry_in_ms is not None:
            at_s = time.monotonic() + outcome.retry_in_ms / 1000
            with self._wanted:
                if at_s < self._poll_at_s:
                    self._poll_at_s = at_s
                    self._wanted.notify()

    def quiesce(self) -> None:
        """Claim nothing more."""
        self.stop()

    def _wake(self) -> None:
        with self._wanted:
            self._closed = True
            self._wanted.notify()

    @abstractmethod
    def _room(self) -> int:
        """How many more it may claim now."""

    @abstractmethod
    def _claim(self, due: Sequence[Fired]) -> bool:
        """Claim due instants; true, as None would mean that the ledger was away."""

    @abstractmethod
    def _claim_queued(self, room: int) -> bool:
        """Claim up to *room* queued runs; whether there may be more to claim."""

    @property
    def _without(self) -> set[str]:
        """Queued runs that are not tried for now: the database lets nobody change their rows."""
        now_s = time.monotonic()
        self._stuck = {run_id: at_s for run_id, at_s in self._stuck.items() if at_s > now_s}
        return set(self._stuck)

    def _tell_refused(self, refused: Sequence[RefusedClaim]) -> bool:
        """Report runs that cannot start; whether what stood before others is gone."""
        is_new = False
        for each in refused:
            if not each.is_ended and len(self._stuck) >= _MOST_STUCK:
                continue
            is_new = True
            if not each.is_ended:
                self._stuck[each.run_id] = time.monotonic() + _STUCK_S
            said = f"run {each.run_id} of {each.task} cannot start"
            self._context.events.warned(f"{said}: {each.reason}")
        return is_new

    def _settle(self, due: Sequence[Fired], outcome: ClaimResult) -> None:
        """Report skipped instants; put back those that are early by the database's clock."""
        for each in outcome.skipped:
            reason = "the run before it has not ended"
            self._context.events.run_not_started(each.task, each.scheduled_ms, "skipped", reason)
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
            claimed = self._claim_or_isolate(due)
            self._claiming = []
            if not claimed:
                time.sleep(0.2)
                return True
        if self._wants_queue() and self._lease.trusted:
            # Not in step with the schedule: a task of each second holds its lock at the same
            # moment of each, and what is queued would not find it free for a minute.
            self._asking = True
            self._poll_at_s = time.monotonic() + self._poll_s * random.uniform(0.8, 1.0)
            self._more_queued = bool(self._context.outage.guard(self._take_queued))
            self._asking = False
        return True

    def _claim_or_isolate(self, due: Sequence[Fired]) -> bool:
        """Claim them; False if the ledger was away, or refused all. They are put back then."""
        refused: list[Exception] = []

        def note(error: Exception) -> bool:
            refused.append(error)
            return True

        def claim() -> bool:
            return self._claim(due)

        claimed = self._context.outage.guard(claim, note)
        if claimed is None:
            self._put_back(due)
            return False
        if not refused:
            return True
        if len(due) == 1:
            self._context.outage.note_refusal(claim, refused[0])
            with self._wanted:
                self._backlog.extend(due)
            return False
        half = len(due) // 2
        first = self._claim_or_isolate(due[:half])
        return self._claim_or_isolate(due[half:]) or first

    def _take_queued(self) -> bool:
        """Claim queued runs; whether to look again once there is room."""
        room = self._room()
        return room <= 0 or self._claim_queued(room)

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
