"""Dispatch runs to their brokers, and send again the messages that a broker has lost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fsa_cli.exceptions import BrokerUnreachable
from fsa_cli.ledger import redelivery
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.claim_queued import claim_queued
from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.processes.claimer import Claimer, Fired
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.schedule_plan import Scheduled
from fsa_cli.runs.executor import Executor, Message

__all__ = ["BrokerDispatcher"]

_LATE_EVERY_S = 5.0
# In one transaction; PostgreSQL's trigger tells the workers of each.
_AT_ONCE = 500
_UNSENT_AGAIN_MS = 1000


class BrokerDispatcher(Claimer):
    """One thread for all brokers, so that none of them keeps this process's own runs waiting.

    Args:
        brokers: By name, each with the tasks whose runs it carries and the lock of each task.
    """

    def __init__(
        self,
        context: NodeContext,
        brokers: Mapping[str, tuple[Executor, Mapping[str, str | None]]],
    ) -> None:
        super().__init__(context, "brokers")
        self._warn = context.events.warned
        self._brokers = brokers
        self._late_at_s = time.monotonic() + _LATE_EVERY_S
        self._away: set[str] = set()

    def start(self) -> None:
        if self._brokers:
            super().start()

    @property
    def alive(self) -> bool:
        """Whether its thread lives, or is not needed."""
        return super().alive or not self._brokers

    @property
    def idle(self) -> bool:
        """Whether it has looked, and found nothing more to dispatch."""
        return super().idle or not self._brokers

    def carries(self, scheduled: Scheduled) -> bool:
        return scheduled.executor in self._brokers

    def _room(self) -> int:
        return _AT_ONCE

    def _claim(self, due: Sequence[Fired]) -> bool:
        """Dispatch the instants that are due."""
        by_broker: dict[str, list[Fired]] = defaultdict(list)
        for scheduled, instant in due:
            by_broker[scheduled.executor].append((scheduled, instant))
        for name, chosen in by_broker.items():
            broker, _ = self._brokers[name]
            asked, window_ms = self._asked(chosen)
            outcome = claim_due(
                self._ledger,
                self._lease.id,
                asked,
                window_ms=window_ms,
                dispatch=broker.joined,
            )
            self._publish_unjoined(broker, _messages(outcome.mine))
            self._settle(chosen, outcome)
        return True

    def _claim_queued(self, room: int) -> bool:
        more = waits = False
        for broker, locks in self._brokers.values():
            found = claim_queued(
                self._ledger,
                self._lease.id,
                locks,
                most=room,
                executor=broker.name,
                dispatch=broker.joined,
                without=self._without,
            )
            self._publish_unjoined(broker, _messages(found.runs))
            is_new = self._tell_refused(found.refused)
            waits = waits or found.waits
            more = more or (found.more and (is_new or bool(found.runs)))
        self._waits_for_lock = waits
        if time.monotonic() >= self._late_at_s:
            self._late_at_s = time.monotonic() + _LATE_EVERY_S
            self._resend()
        return more

    def _resend(self) -> None:
        """Send again what was not started in time and the broker no longer queues."""
        for broker, _ in self._brokers.values():
            for queue, (number, late) in redelivery.late_messages(
                self._ledger, broker.name
            ).items():
                waiting = self._reached(broker, partial(broker.waiting, queue))
                if waiting is not None and waiting < number:
                    self._resend_queue(broker, queue, min(number - waiting, late, _AT_ONCE))

    def _resend_queue(self, broker: Executor, queue: str, most: int) -> None:
        run_ids = redelivery.resend(self._ledger, broker.name, queue, most)
        self._publish(broker, [Message(run_id, queue) for run_id in run_ids])

    def _publish_unjoined(self, broker: Executor, messages: Sequence[Message]) -> None:
        """Send messages, unless the statement that has dispatched their runs has sent them."""
        if not broker.joined:
            self._publish(broker, messages)

    def _publish(self, broker: Executor, messages: Sequence[Message]) -> None:
        if messages and self._reached(broker, lambda: _sent(broker, messages)) is None:
            run_ids = [message.run_id for message in messages]
            redelivery.mark_unsent(self._ledger, run_ids, _UNSENT_AGAIN_MS)

    def _reached(self, broker: Executor, work: Callable[[], int]) -> int | None:
        """The value of *work*; None if the broker is away, which is reported once."""
        try:
            found = work()
        except BrokerUnreachable as exc:
            if broker.name not in self._away:
                self._away.add(broker.name)
                self._warn(exc.message)
            return None
        if broker.name in self._away:
            self._away.discard(broker.name)
            self._warn(f"{broker.name} can be reached again")
            redelivery.mark_all_late(self._ledger, broker.name)
            self._late_at_s = 0.0
        return found


def _sent(broker: Executor, messages: Sequence[Message]) -> int:
    broker.publish(messages)
    return len(messages)


def _messages(claimed: Sequence[ClaimedRun]) -> list[Message]:
    return [Message(each.run_id, each.queue or "") for each in claimed]
