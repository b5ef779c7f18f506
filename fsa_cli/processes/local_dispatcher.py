"""From an instant that has come, or a queued run, to one that this process makes."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from operator import itemgetter

from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.instants import instants_with_row
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.claimer import Claimer, Fired, Skipped
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.launcher import Launcher
from fsa_cli.processes.lease import Lease
from fsa_cli.processes.outage import Outage
from fsa_cli.processes.pool import RunPool

__all__ = ["LocalDispatcher"]

_ASKED = 1000
# What comes in one instant is shared: all replicas have their free slots filled first.
_HEAD_START_S = 0.02


class LocalDispatcher(Claimer):
    """Claims what this process can start now: its free slots, and as many again.

    What is more waits unclaimed, for another replica to take, or for a slot.

    Args:
        locks: The tasks that this process can run, and what each locks.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        membership: Lease,
        executor: RunPool,
        launcher: Launcher,
        trouble: Outage,
        *,
        locks: Mapping[str, str | None],
        skipped: Skipped,
    ) -> None:
        super().__init__(ledger, clock, membership, trouble, skipped, "fsa claims")
        self._executor = executor
        self._launcher = launcher
        self._locks = locks
        self._fired_at_s = float("-inf")

    @property
    def idle(self) -> bool:
        """Whether there was nothing more to claim, and nothing runs."""
        return super().idle and self._executor.load == 0

    def fire(self, due: Sequence[Fired]) -> None:
        """These instants have come."""
        self._fired_at_s = time.monotonic()
        # Of one instant each replica begins with others: in one order the first would stay first.
        super().fire(sorted(random.sample(due, len(due)), key=itemgetter(1)))

    def freed(self) -> None:
        """A slot is free."""
        if (self._backlog or self._more_queued) and self._room() > 0:
            with self._wanted:
                self._wanted.notify()

    def close(self) -> None:
        """Claim nothing more, and give back what has not begun."""
        super().close()
        self._launcher.give_back(self._executor.close())

    def _room(self) -> int:
        """How many more runs it may hold. It asks for many at a time, not for one after each."""
        concurrency, load = self._executor.concurrency, self._executor.load
        return 2 * concurrency - load if load <= concurrency else 0

    def _room_for_fired(self) -> int:
        if time.monotonic() >= self._head_start_until_s:
            return self._room()
        concurrency, load = self._executor.concurrency, self._executor.load
        return concurrency - load if load <= concurrency // 2 else 0

    def _look_at_s(self) -> float:
        until_s = self._head_start_until_s
        waits = self._backlog and until_s > time.monotonic()
        return min(self._poll_at_s, until_s) if waits else self._poll_at_s

    @property
    def _head_start_until_s(self) -> float:
        """Until then other replicas may have what this one cannot start now, if there are any."""
        return float("-inf") if self.alone else self._fired_at_s + _HEAD_START_S

    def _claim(self, due: Sequence[Fired]) -> bool:
        asked, window_ms = self._asked(due)
        outcome = claim_due(self._ledger, self._membership.id, asked, window_ms=window_ms)
        for claimed in outcome.mine:
            self._launcher.begin(claimed)
        if outcome.queued:
            self._more_queued = True
        if len(outcome.others) * 2 > len(due):
            self._drop_taken()
        self._settle(due, outcome)
        return True

    def _drop_taken(self) -> None:
        """Other replicas are at it: ask once what they have, and not for a few at a time."""
        with self._wanted:
            waiting = [(each.task.name, instant) for each, instant in self._backlog]
        if waiting:
            asked = waiting[:_ASKED]
            self.forget(self._ledger.read(lambda c: instants_with_row(self._ledger, c, asked)))

    def _claim_queued(self, room: int) -> bool:
        found = claim_queued(self._ledger, self._membership.id, self._locks, most=room)
        self._waits_for_lock = found.waits
        for claimed in found.runs:
            self._launcher.begin(claimed)
        return found.more and bool(found.runs)
