"""Claim due instants and queued runs for this process, and start them."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from operator import itemgetter

from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_next, claim_queued
from fsa_cli.ledger.instants import instants_with_row
from fsa_cli.ledger.records import RunOutcome
from fsa_cli.processes.claimer import Claimer, Fired
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.run_lifecycle import RunLifecycle
from fsa_cli.runner.run import Run, RunResult

__all__ = ["LocalDispatcher"]

_ASKED = 1000
# Instants that come together are shared: all replicas fill their free slots first.
_HEAD_START_S = 0.02
# After what was just asked for has begun, the queue is looked at for what has a lock.
_LOCKED_LATER_S = 0.02


class LocalDispatcher(Claimer):
    """Claims as many runs as this process has free slots, and as many as come free soon.

    The others stay unclaimed, for another replica or until a slot is free. What was claimed and
    waits while no slot comes free is queued again.

    Args:
        locks: The tasks that this process can run, and the lock of each.
    """

    def __init__(
        self, context: NodeContext, lifecycle: RunLifecycle, locks: Mapping[str, str | None]
    ) -> None:
        super().__init__(context, "claims")
        self._lifecycle = lifecycle
        self._pool = lifecycle.pool
        self._locks = locks
        self._fired_at_s = float("-inf")
        self._heard = self._was_empty = False

    @property
    def idle(self) -> bool:
        """Whether nothing is left to claim, and nothing runs."""
        return super().idle and self._pool.load == 0

    def fire(self, due: Sequence[Fired]) -> None:
        """Claim these instants, which have come due."""
        self._fired_at_s = time.monotonic()
        # Of one instant each replica begins with others: in one order the first would stay first.
        super().fire(sorted(random.sample(due, len(due)), key=itemgetter(1)))

    def heard(self) -> None:
        """A run was asked for: claim it at once, unless others wait before it."""
        self._heard = True
        self.poll()

    def run_finished(self, run: Run, result: RunResult | None, outcome: RunOutcome | None) -> None:
        """Claim more, now that a slot is free."""
        super().run_finished(run, result, outcome)
        if (self._backlog or self._more_queued) and self._free >= 0:
            with self._wanted:
                self._wanted.notify()

    def _room(self) -> int:
        """How many more runs it may hold. It claims many at a time, not one after each.

        A slot is not to wait for a claim, nor a run for a slot that stays taken.
        """
        free = self._free
        return free + self._pool.comes_free_soon if free >= 0 else 0

    @property
    def _free(self) -> int:
        """How many slots are free; below 0 while runs wait for one."""
        return self._pool.concurrency - self._pool.load

    def _room_for_fired(self) -> int:
        if time.monotonic() >= self._head_start_until_s:
            return self._room()
        free = self._free
        return free if free * 2 >= self._pool.concurrency else 0

    def _look_at_s(self) -> float:
        until_s = self._head_start_until_s
        waits = self._backlog and until_s > time.monotonic()
        return min(self._poll_at_s, until_s) if waits else self._poll_at_s

    @property
    def _head_start_until_s(self) -> float:
        """Until then other replicas may take what this one cannot start now, if there are any."""
        return float("-inf") if self.alone else self._fired_at_s + _HEAD_START_S

    def _take_queued(self) -> bool:
        if left := self._pool.take_back():
            self._lifecycle.give_back(left)
        return super()._take_queued()

    def _claim(self, due: Sequence[Fired]) -> bool:
        asked, window_ms = self._asked(due)
        with self._lifecycle.claiming() as token:
            outcome = claim_due(
                self._ledger, self._lease.id, asked, window_ms=window_ms, token=token
            )
            claimed = self._lifecycle.add(outcome.mine)
        for each in claimed:
            self._lifecycle.start(each)
        if outcome.queued:
            self._more_queued = True
        if len(outcome.others) * 2 > len(due):
            self._drop_taken()
        self._settle(due, outcome)
        return True

    def _drop_taken(self) -> None:
        """Ask once for everything that other replicas have claimed, not for a few at a time."""
        with self._wanted:
            waiting = [(each.task.name, instant) for each, instant in self._backlog]
        if waiting:
            asked = waiting[:_ASKED]
            self.forget(self._ledger.read(lambda c: instants_with_row(self._ledger, c, asked)))

    def _claim_queued(self, room: int) -> bool:
        heard, self._heard = self._heard, False
        if heard and self._was_empty and (taken := self._claim_next(room)):
            self._was_empty = taken < room
            self._poll_at_s = min(self._poll_at_s, time.monotonic() + _LOCKED_LATER_S)
            return not self._was_empty
        with self._lifecycle.claiming() as token:
            found = claim_queued(
                self._ledger,
                self._lease.id,
                self._locks,
                most=room,
                token=token,
                without=self._without,
            )
            claimed = self._lifecycle.add(found.runs)
        self._waits_for_lock, self._was_empty = found.waits, found.empty
        for each in claimed:
            self._lifecycle.start(each)
        is_new = self._tell_refused(found.refused)
        return found.more and (is_new or bool(found.runs))

    def _claim_next(self, room: int) -> int:
        """Claim and start what was just asked for; how many."""
        with self._lifecycle.claiming() as token:
            runs = claim_next(self._ledger, self._lease.id, self._locks, most=room, token=token)
            claimed = self._lifecycle.add(runs)
        for each in claimed:
            self._lifecycle.start(each)
        return len(claimed)
