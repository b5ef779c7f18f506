"""From an instant that has come, or a queued run, to one that this process makes."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from operator import itemgetter

from fsa_cli.executors.local import LocalExecutor
from fsa_cli.ledger import claims
from fsa_cli.ledger.store import Ledger
from fsa_cli.scheduler.clock import Clock
from fsa_cli.scheduler.launch import Launcher
from fsa_cli.scheduler.membership import Membership
from fsa_cli.scheduler.plan import Scheduled
from fsa_cli.scheduler.trouble import Trouble

__all__ = ["Dispatcher"]

_POLL_S = 1.0
# Older instants are left to the sweep, which knows whether somebody stood for them.
_WINDOW_MS = 5000
_ASKED = 1000


class Dispatcher:
    """Claims what this process can start now: its free slots, and as many again.

    What is more waits unclaimed, for another replica to take, or for a slot.

    Args:
        locks: The tasks that this process can run, and what each locks.
        skipped: Told of instants that were recorded as skipped: the task, the instant, the reason.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        membership: Membership,
        executor: LocalExecutor,
        launcher: Launcher,
        trouble: Trouble,
        *,
        locks: Mapping[str, str | None],
        skipped: Callable[[str, int, str], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._membership = membership
        self._executor = executor
        self._launcher = launcher
        self._trouble = trouble
        self._locks = locks
        self._skipped = skipped
        self._backlog: deque[tuple[Scheduled, int]] = deque()
        self._claiming: list[tuple[Scheduled, int]] = []
        self._wanted = threading.Condition()
        self._closed = False
        self._poll_at_s = 0.0
        self._asking = self._more_queued = self._waits_for_lock = False
        self._thread = threading.Thread(target=self._serve, name="fsa claims", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def fire(self, due: list[tuple[Scheduled, int]]) -> None:
        """These instants have come."""
        # Of one instant each replica begins with others: in one order the first would stay first.
        mixed = sorted(random.sample(due, len(due)), key=itemgetter(1))
        with self._wanted:
            self._backlog.extend(mixed)
            self._wanted.notify()

    def poll(self) -> None:
        """There is something in the queue."""
        with self._wanted:
            self._poll_at_s = 0.0
            self._wanted.notify()

    def freed(self) -> None:
        """A slot is free."""
        if (self._backlog or self._more_queued) and self._room() > 0:
            with self._wanted:
                self._wanted.notify()

    def released(self) -> None:
        """Runs have ended, and given back what they had locked."""
        if self._waits_for_lock:
            self._waits_for_lock = False
            self.poll()

    def forget(self, swept: set[tuple[str, int]]) -> None:
        """These instants have a row now: the queue has them."""
        with self._wanted:
            self._backlog = deque(
                (each, instant)
                for each, instant in self._backlog
                if (each.task.name, instant) not in swept
            )

    def close(self) -> None:
        """Claim nothing more, and give back what has not begun."""
        with self._wanted:
            self._closed = True
            self._wanted.notify()
        if self._thread.is_alive():
            self._thread.join(5)
        self._launcher.give_back(self._executor.close())

    @property
    def alive(self) -> bool:
        """Whether its thread is there."""
        return self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """Whether there was nothing more to claim, and nothing runs."""
        asked = self._poll_at_s > 0.0 and not self._more_queued and not self._asking
        waiting = self._backlog or self._claiming
        return asked and not waiting and self._executor.load == 0

    @property
    def backlog(self) -> int:
        """How many instants have come and wait for a slot."""
        return len(self._backlog)

    @property
    def waiting_since_ms(self) -> int:
        """The oldest instant that waits for a slot or is being claimed; now if there is none."""
        with self._wanted:
            instants = [instant for _, instant in (*self._backlog, *self._claiming)]
        return min(instants, default=self._clock.now_ms)

    def _serve(self) -> None:
        with self._ledger.keeping_a_connection():
            while self._serve_once():
                pass

    def _serve_once(self) -> bool:
        """Claim what there is, or wait for something; False once it is closed."""
        with self._wanted:
            while not self._closed and not self._has_work():
                pause_s = self._poll_at_s - time.monotonic()
                self._wanted.wait(max(pause_s, 0.01) if self._membership.trusted else 0.1)
            if self._closed:
                return False
            self._claiming = due = self._taken() if self._membership.trusted else []
        if due:
            outcome = self._trouble.met(lambda: self._claim(due))
            if outcome is None:
                self._put_back(due)
            self._claiming = []
            if outcome is None:
                time.sleep(0.2)
                return True
        if self._wants_queue():
            # Not in step with the schedule: a task of each second holds its lock at the same
            # moment of each, and what is queued would not find it free for a minute.
            self._asking = True
            self._poll_at_s = time.monotonic() + _POLL_S * random.uniform(0.6, 1.0)
            taken = self._trouble.met(self._claim_queued)
            self._more_queued = bool(taken)
            self._asking = False
        return True

    def _has_work(self) -> bool:
        if not self._membership.trusted:
            return False
        return bool(self._backlog and self._room()) or self._wants_queue()

    def _wants_queue(self) -> bool:
        return (self._more_queued and self._room() > 0) or time.monotonic() >= self._poll_at_s

    def _room(self) -> int:
        """How many more runs it may hold. It asks for many at a time, not for one after each."""
        concurrency, load = self._executor.concurrency, self._executor.load
        return 2 * concurrency - load if load <= concurrency else 0

    def _taken(self) -> list[tuple[Scheduled, int]]:
        room = self._room()
        return [self._backlog.popleft() for _ in range(min(room, len(self._backlog)))]

    def _put_back(self, due: list[tuple[Scheduled, int]]) -> None:
        with self._wanted:
            self._backlog.extendleft(reversed(due))

    def _claim(self, due: list[tuple[Scheduled, int]]) -> bool:
        window_ms = _WINDOW_MS + max(scheduled.jitter_ms for scheduled, _ in due)
        asked = [scheduled.due(instant, self._ledger.namespace) for scheduled, instant in due]
        outcome = claims.claim(self._ledger, self._membership.id, asked, window_ms=window_ms)
        for claimed in outcome.mine:
            self._launcher.begin(claimed)
        for each in outcome.skipped:
            self._skipped(each.task, each.scheduled_ms, "the run before it has not ended")
        if outcome.queued:
            self._more_queued = True
        if len(outcome.others) * 2 > len(due):
            self._drop_taken()
        if outcome.early:
            early = {each.key for each in outcome.early}
            self._put_back([each for each in due if (each[0].task.name, each[1]) in early])
            time.sleep(0.01)
        return True

    def _drop_taken(self) -> None:
        """Other replicas are at it: ask once what they have, and not for a few at a time."""
        with self._wanted:
            waiting = [(each.task.name, instant) for each, instant in self._backlog]
        if waiting:
            asked = waiting[:_ASKED]
            self.forget(self._ledger.read(lambda c: claims.with_row(self._ledger, c, asked)))

    def _claim_queued(self) -> bool:
        """Whether there may be more that it could take."""
        room = self._room()
        if room <= 0 or not self._membership.trusted:
            return False
        found = claims.claim_queued(self._ledger, self._membership.id, self._locks, most=room)
        self._waits_for_lock = found.waits
        for claimed in found.runs:
            self._launcher.begin(claimed)
        return found.more and bool(found.runs)
