"""Hands runs over to the engines that carry them, and sends again what an engine has lost."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sqlalchemy import Connection

from fsa_cli.exceptions import EngineUnreachable
from fsa_cli.executors.base import Executor, Message
from fsa_cli.ledger import claims, handover
from fsa_cli.ledger.claims import Claimed
from fsa_cli.ledger.store import Ledger
from fsa_cli.scheduler.clock import Clock
from fsa_cli.scheduler.membership import Membership
from fsa_cli.scheduler.plan import Scheduled
from fsa_cli.scheduler.trouble import Trouble

__all__ = ["Courier"]

_POLLED_EVERY_S = 1.0
_LATE_EVERY_S = 5.0
_WINDOW_MS = 5000
# In one transaction; PostgreSQL's trigger tells the workers of each.
_AT_ONCE = 500
_UNSENT_AGAIN_MS = 1000


class Courier:
    """A thread for all engines: none of them keeps this process's own runs waiting.

    Args:
        engines: What carries runs here, by name; each with its tasks and what each of them locks.
        skipped: Told of instants that were recorded as skipped: the task, the instant, the reason.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        membership: Membership,
        trouble: Trouble,
        warn: Callable[[str], None],
        engines: Mapping[str, tuple[Executor, Mapping[str, str | None]]],
        *,
        skipped: Callable[[str, int, str], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._membership = membership
        self._trouble = trouble
        self._warn = warn
        self._engines = engines
        self._skipped = skipped
        self._backlog: list[tuple[Scheduled, int]] = []
        self._carrying: list[tuple[Scheduled, int]] = []
        self._wanted = threading.Condition()
        self._closed = self._asked = self._waits_for_lock = False
        self._poll_at_s = 0.0
        self._late_at_s = time.monotonic() + _LATE_EVERY_S
        self._away: set[str] = set()
        self._thread = threading.Thread(target=self._serve, name="fsa hand-over", daemon=True)

    def start(self) -> None:
        if self._engines:
            self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread is there, or there is nothing for it to do."""
        return self._thread.is_alive() or not self._engines

    @property
    def idle(self) -> bool:
        """Whether it has looked, and there was nothing more to hand over."""
        return not self._engines or (
            self._asked and not self._backlog and not self._carrying and self._poll_at_s > 0.0
        )

    @property
    def waiting_since_ms(self) -> int:
        """The oldest instant that is not handed over yet; now if there is none."""
        with self._wanted:
            instants = [instant for _, instant in (*self._backlog, *self._carrying)]
        return min(instants, default=self._clock.now_ms)

    def carries(self, scheduled: Scheduled) -> bool:
        return scheduled.executor in self._engines

    def fire(self, due: Sequence[tuple[Scheduled, int]]) -> None:
        """These instants have come."""
        with self._wanted:
            self._backlog.extend(due)
            self._wanted.notify()

    def poll(self) -> None:
        """There is something in the queue."""
        with self._wanted:
            self._poll_at_s = 0.0
            self._wanted.notify()

    def released(self) -> None:
        """Runs have ended here, and given back what they had locked."""
        if self._waits_for_lock:
            self._waits_for_lock = False
            self.poll()

    def forget(self, swept: set[tuple[str, int]]) -> None:
        """These instants have a row now: the queue has them."""
        with self._wanted:
            self._backlog = [
                each for each in self._backlog if (each[0].task.name, each[1]) not in swept
            ]

    def close(self) -> None:
        """Hand nothing more over."""
        with self._wanted:
            self._closed = True
            self._wanted.notify()
        if self._thread.is_alive():
            self._thread.join(5)

    def _serve(self) -> None:
        with self._ledger.keeping_a_connection():
            while self._serve_once():
                pass

    def _serve_once(self) -> bool:
        with self._wanted:
            while not self._closed and not self._has_work():
                pause_s = self._poll_at_s - time.monotonic()
                self._wanted.wait(max(pause_s, 0.01) if self._membership.trusted else 0.1)
            if self._closed:
                return False
            self._carrying, self._backlog = self._backlog[:_AT_ONCE], self._backlog[_AT_ONCE:]
            due = self._carrying
        if due and self._trouble.met(lambda: self._fire(due)) is None:
            with self._wanted:
                self._backlog[:0] = due
            time.sleep(0.2)
        self._carrying = []
        now_s = time.monotonic()
        if now_s >= self._poll_at_s:
            self._poll_at_s = now_s + _POLLED_EVERY_S
            more = self._trouble.met(self._poll)
            self._asked = True
            if more:
                self._poll_at_s = 0.0
        if now_s >= self._late_at_s:
            self._late_at_s = now_s + _LATE_EVERY_S
            self._trouble.met(self._resend)
        return True

    def _has_work(self) -> bool:
        if not self._membership.trusted:
            return False
        return bool(self._backlog) or time.monotonic() >= self._poll_at_s

    def _fire(self, due: Sequence[tuple[Scheduled, int]]) -> bool:
        """Have the engines carry what is due."""
        by_engine: dict[str, list[tuple[Scheduled, int]]] = defaultdict(list)
        for scheduled, instant in due:
            by_engine[scheduled.executor].append((scheduled, instant))
        for name, chosen in by_engine.items():
            engine, _ = self._engines[name]
            namespace = self._ledger.namespace
            asked = [scheduled.due(instant, namespace) for scheduled, instant in chosen]
            outcome = claims.claim(
                self._ledger,
                self._membership.id,
                asked,
                window_ms=_WINDOW_MS + max(scheduled.jitter_ms for scheduled, _ in chosen),
                hand_off=_enlisting(engine),
            )
            self._publish(engine, _messages(outcome.mine))
            for each in outcome.skipped:
                self._skipped(each.task, each.scheduled_ms, "the run before it has not ended")
            if outcome.early:
                early = {each.key for each in outcome.early}
                with self._wanted:
                    self._backlog += [e for e in chosen if (e[0].task.name, e[1]) in early]
                time.sleep(0.01)
        return True

    def _poll(self) -> bool:
        """Whether there may be more in the queue."""
        more = False
        for engine, locks in self._engines.values():
            found = claims.claim_queued(
                self._ledger,
                self._membership.id,
                locks,
                most=_AT_ONCE,
                executor=engine.name,
                hand_off=_enlisting(engine),
            )
            self._publish(engine, _messages(found.runs))
            self._waits_for_lock = self._waits_for_lock or found.waits
            more = more or (found.more and bool(found.runs))
        return more

    def _resend(self) -> bool:
        """Send again what has not begun in time, unless it only waits in the engine's queue."""
        for engine, _ in self._engines.values():
            for queue, (number, late) in handover.late(self._ledger, engine.name).items():
                waiting = self._reached(engine, partial(engine.waiting, queue))
                if waiting is not None and waiting < number:
                    self._resend_of(engine, queue, min(number - waiting, late, _AT_ONCE))
        return True

    def _resend_of(self, engine: Executor, queue: str, most: int) -> None:
        messages: list[Message] = []

        def enlist(connection: Connection, run_ids: Sequence[str]) -> None:
            messages[:] = [Message(run_id, queue) for run_id in run_ids]
            engine.enlist(connection, messages)

        handover.resend(self._ledger, engine.name, queue, most, enlist)
        self._publish(engine, messages)

    def _publish(self, engine: Executor, messages: Sequence[Message]) -> None:
        if messages and self._reached(engine, lambda: _sent(engine, messages)) is None:
            run_ids = [message.run_id for message in messages]
            handover.unsent(self._ledger, run_ids, _UNSENT_AGAIN_MS)

    def _reached(self, engine: Executor, work: Callable[[], int]) -> int | None:
        """What *work* returns; None if the engine is away, which is said once."""
        try:
            found = work()
        except EngineUnreachable as exc:
            if engine.name not in self._away:
                self._away.add(engine.name)
                self._warn(exc.message)
            return None
        if engine.name in self._away:
            self._away.discard(engine.name)
            self._warn(f"{engine.name} can be reached again")
            handover.doubt(self._ledger, engine.name)
            self._late_at_s = 0.0
        return found


def _sent(engine: Executor, messages: Sequence[Message]) -> int:
    engine.publish(messages)
    return len(messages)


def _enlisting(engine: Executor) -> Callable[[Connection, Sequence[Claimed]], None]:
    return lambda connection, claimed: engine.enlist(connection, _messages(claimed))


def _messages(claimed: Sequence[Claimed]) -> list[Message]:
    return [Message(each.run_id, each.queue or "") for each in claimed]
