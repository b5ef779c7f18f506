"""Hands runs over to the engines that carry them, and sends again what an engine has lost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sqlalchemy import Connection

from fsa_cli.exceptions import BrokerUnreachable
from fsa_cli.ledger import redelivery
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.claimer import Claimer, Fired, Skipped
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.lease import Lease
from fsa_cli.processes.outage import Outage
from fsa_cli.processes.schedule_plan import Scheduled
from fsa_cli.runs.executor import Executor, Message

__all__ = ["BrokerDispatcher"]

_LATE_EVERY_S = 5.0
# In one transaction; PostgreSQL's trigger tells the workers of each.
_AT_ONCE = 500
_UNSENT_AGAIN_MS = 1000


class BrokerDispatcher(Claimer):
    """A thread for all engines: none of them keeps this process's own runs waiting.

    Args:
        warn: Puts a line in front of a person.
        engines: What carries runs here, by name; each with its tasks and what each of them locks.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        membership: Lease,
        trouble: Outage,
        warn: Callable[[str], None],
        engines: Mapping[str, tuple[Executor, Mapping[str, str | None]]],
        *,
        skipped: Skipped,
    ) -> None:
        super().__init__(ledger, clock, membership, trouble, skipped, "fsa hand-over")
        self._warn = warn
        self._engines = engines
        self._late_at_s = time.monotonic() + _LATE_EVERY_S
        self._away: set[str] = set()

    def start(self) -> None:
        if self._engines:
            super().start()

    @property
    def alive(self) -> bool:
        """Whether its thread is there, or there is nothing for it to do."""
        return super().alive or not self._engines

    @property
    def idle(self) -> bool:
        """Whether it has looked, and there was nothing more to hand over."""
        return super().idle or not self._engines

    def carries(self, scheduled: Scheduled) -> bool:
        return scheduled.executor in self._engines

    def _room(self) -> int:
        return _AT_ONCE

    def _claim(self, due: Sequence[Fired]) -> bool:
        """Have the engines carry what is due."""
        by_engine: dict[str, list[Fired]] = defaultdict(list)
        for scheduled, instant in due:
            by_engine[scheduled.executor].append((scheduled, instant))
        for name, chosen in by_engine.items():
            engine, _ = self._engines[name]
            asked, window_ms = self._asked(chosen)
            outcome = claim_due(
                self._ledger,
                self._membership.id,
                asked,
                window_ms=window_ms,
                hand_off=_enlisting(engine),
            )
            self._publish(engine, _messages(outcome.mine))
            self._settle(chosen, outcome)
        return True

    def _claim_queued(self, room: int) -> bool:
        more = waits = False
        for engine, locks in self._engines.values():
            found = claim_queued(
                self._ledger,
                self._membership.id,
                locks,
                most=room,
                executor=engine.name,
                hand_off=_enlisting(engine),
            )
            self._publish(engine, _messages(found.runs))
            waits = waits or found.waits
            more = more or (found.more and bool(found.runs))
        self._waits_for_lock = waits
        if time.monotonic() >= self._late_at_s:
            self._late_at_s = time.monotonic() + _LATE_EVERY_S
            self._resend()
        return more

    def _resend(self) -> None:
        """Send again what has not begun in time, unless it only waits in the engine's queue."""
        for engine, _ in self._engines.values():
            for queue, (number, late) in redelivery.late_messages(
                self._ledger, engine.name
            ).items():
                waiting = self._reached(engine, partial(engine.waiting, queue))
                if waiting is not None and waiting < number:
                    self._resend_of(engine, queue, min(number - waiting, late, _AT_ONCE))

    def _resend_of(self, engine: Executor, queue: str, most: int) -> None:
        messages: list[Message] = []

        def enlist(connection: Connection, run_ids: Sequence[str]) -> None:
            messages[:] = [Message(run_id, queue) for run_id in run_ids]
            engine.enlist(connection, messages)

        redelivery.resend(self._ledger, engine.name, queue, most, enlist)
        self._publish(engine, messages)

    def _publish(self, engine: Executor, messages: Sequence[Message]) -> None:
        if messages and self._reached(engine, lambda: _sent(engine, messages)) is None:
            run_ids = [message.run_id for message in messages]
            redelivery.mark_unsent(self._ledger, run_ids, _UNSENT_AGAIN_MS)

    def _reached(self, engine: Executor, work: Callable[[], int]) -> int | None:
        """What *work* returns; None if the engine is away, which is said once."""
        try:
            found = work()
        except BrokerUnreachable as exc:
            if engine.name not in self._away:
                self._away.add(engine.name)
                self._warn(exc.message)
            return None
        if engine.name in self._away:
            self._away.discard(engine.name)
            self._warn(f"{engine.name} can be reached again")
            redelivery.mark_all_late(self._ledger, engine.name)
            self._late_at_s = 0.0
        return found


def _sent(engine: Executor, messages: Sequence[Message]) -> int:
    engine.publish(messages)
    return len(messages)


def _enlisting(engine: Executor) -> Callable[[Connection, Sequence[ClaimedRun]], None]:
    return lambda connection, claimed: engine.enlist(connection, _messages(claimed))


def _messages(claimed: Sequence[ClaimedRun]) -> list[Message]:
    return [Message(each.run_id, each.queue or "") for each in claimed]
