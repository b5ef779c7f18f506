"""Write the outcomes of runs in batches, until the database has acknowledged them."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fsa_cli.database.connections import driver_message
from fsa_cli.ledger.finish import count_outcomes, free, write_outcomes
from fsa_cli.ledger.records import RunOutcome
from fsa_cli.ledger.refusals import refusal_text
from fsa_cli.processes.active_runs import ActiveRun, ActiveRuns
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.outage import Outage
from fsa_cli.processes.service import ServiceThread
from fsa_cli.terminal.masking import mask

__all__ = ["Completer", "without_details"]

_AGAIN_S = 0.5
_REFUSED_AGAIN_S = 2.0
# Outcomes of so long are one transaction: longer while runs wait for a slot, whose start the
# writing would only delay.
_GATHERED_S = 0.01
_GATHERED_BUSY_S = 0.25


class _End(NamedTuple):
    """The end of a run; without an outcome only its lock is to be freed."""

    active: ActiveRun
    outcome: RunOutcome | None


class Completer(ServiceThread):
    """Writes outcomes, and lets go of each run when the database has acknowledged its end.

    Args:
        busy: Whether runs wait that could start.
    """

    def __init__(self, context: NodeContext, runs: ActiveRuns, busy: Callable[[], bool]) -> None:
        super().__init__("completer")
        self._context = context
        self._runs = runs
        self._busy = busy
        self._queue: queue.SimpleQueue[_End | None] = queue.SimpleQueue()
        self._counters = TaskCounters(context)
        self._refused: list[_End] = []

    @property
    def alive(self) -> bool:
        return super().alive and self._counters.alive

    def start(self) -> None:
        self._counters.start()
        super().start()

    def stop(self, within_s: float = 2.0) -> None:
        """Write the outcomes that are left, for *within_s* at most."""
        super().stop(within_s)
        self._counters.stop(within_s)

    def end(self, active: ActiveRun, outcome: RunOutcome) -> None:
        """Write an outcome soon."""
        self._queue.put(_End(active, outcome))

    def free(self, active: ActiveRun) -> None:
        """Free the lock of a run that had timed out and has returned."""
        self._queue.put(_End(active, None))

    def _wake(self) -> None:
        self._queue.put(None)

    def _serve(self) -> None:
        with self._context.ledger.keeping_a_connection():
            while self._serve_once():
                pass

    def _serve_once(self) -> bool:
        """Write what has ended; False once it is closing."""
        batch = self._batch()
        ends, self._refused = [*self._refused, *(e for e in batch if e is not None)], []
        if ends:
            self._write(ends)
        return None not in batch

    def _batch(self) -> list[_End | None]:
        """What is to be written; nothing, when refused outcomes are to be tried again."""
        try:
            first = self._queue.get(timeout=_REFUSED_AGAIN_S if self._refused else None)
        except queue.Empty:
            return []
        batch = [first]
        if first is not None:
            self._gather()
        while not self._queue.empty():
            batch.append(self._queue.get())
        return batch

    def _gather(self) -> None:
        until_s = time.monotonic() + _GATHERED_BUSY_S
        time.sleep(_GATHERED_S)
        while self._busy() and time.monotonic() < until_s:
            time.sleep(_GATHERED_S)

    def _write(self, ends: Sequence[_End]) -> None:
        outcomes = [each for each in ends if each.outcome is not None]
        written = self._written_of(outcomes)
        for each in (each for each in ends if each.outcome is None):
            claim = each.active.claim
            while self._free(claim.run_id, claim.token) is None:
                time.sleep(_AGAIN_S)
            written.append(each)
        # Before they are let go: a waiting claimer would find nothing to do.
        self._context.events.outcomes_written()
        self._runs.drop(
            each.active for each in written if each.outcome is None or not each.outcome.keeps_lock
        )

    def _free(self, run_id: str, token: str) -> bool | None:
        def work() -> bool:
            free(self._context.ledger, run_id, token)
            return True

        return self._context.outage.guard(work)

    def _written_of(self, ends: Sequence[_End]) -> list[_End]:
        """Those of *ends* that are written; what the database refuses is tried again later."""
        if not ends:
            return []
        refused: list[Exception] = []

        def note(error: Exception) -> set[str]:
            refused.append(error)
            return set()

        def write_them() -> set[str]:
            return write_outcomes(self._context.ledger, _outcomes(ends))

        while (lost := self._context.outage.guard(write_them, note)) is None:
            time.sleep(_AGAIN_S)
        if refused:
            return self._one_by_one(ends, refused[0])
        if lost:
            self._context.events.runs_lost(lost)
        self._counters.count([e for e in _outcomes(ends) if e.run_id not in lost])
        return list(ends)

    def _one_by_one(self, ends: Sequence[_End], error: Exception) -> list[_End]:
        """Isolate the outcome that the database refuses, and write it without its details."""
        if len(ends) > 1:
            written: list[_End] = []
            for number, each in enumerate(ends):
                written += self._written_of([each])
                if each in self._refused:  # even without its details: it may refuse everything
                    self._refused = [*ends[number + 1 :], *self._refused]
                    break
            return written
        (end,) = ends
        assert end.outcome is not None
        plain = without_details(end.outcome, error)
        # What is refused may be the next attempt: without one it ends.
        possible = dict.fromkeys((plain, plain._replace(retry_in_ms=None)))
        if not any(self._wrote_plain(end, e) for e in possible if e != end.outcome):
            if end.active.unrecorded is None:
                end.active.unrecorded = mask(driver_message(error))
                said = f"run {plain.run_id} of {plain.task} cannot be recorded"
                self._context.events.warned(f"{said}: {end.active.unrecorded}")
            self._refused.append(end)
            return []
        return [end]

    def _wrote_plain(self, end: _End, plain: RunOutcome) -> bool:
        refused: list[Exception] = []

        def note(error: Exception) -> set[str]:
            refused.append(error)
            return set()

        def write_it() -> set[str]:
            return write_outcomes(self._context.ledger, [plain])

        while (lost := self._context.outage.guard(write_it, note)) is None:
            time.sleep(_AGAIN_S)
        if refused:
            return False
        self._context.events.warned(f"run {plain.run_id} of {plain.task}: {plain.error}")
        self._counters.count([plain] if plain.run_id not in lost else [])
        return True


class TaskCounters(ServiceThread):
    """Updates each task's last success and failures; a locked row of a task delays no outcome."""

    def __init__(self, context: NodeContext) -> None:
        super().__init__("counters")
        self._ledger = context.ledger
        self._outage: Outage = context.outage
        self._queue: queue.SimpleQueue[Sequence[RunOutcome]] = queue.SimpleQueue()

    def count(self, outcomes: Sequence[RunOutcome]) -> None:
        if outcomes:
            self._queue.put(outcomes)

    def _wake(self) -> None:
        self._queue.put(())

    def _serve(self) -> None:
        with self._ledger.keeping_a_connection():
            while not self._stopping.is_set() or not self._queue.empty():
                outcomes = list(self._queue.get())
                while not self._queue.empty():
                    outcomes += self._queue.get()
                self._count(outcomes)

    def _count(self, outcomes: Sequence[RunOutcome]) -> None:
        def count_them() -> bool:
            count_outcomes(self._ledger, outcomes)
            return True

        while outcomes and not self._outage.reached(count_them):
            if self._stopping.wait(_AGAIN_S):
                return


def without_details(outcome: RunOutcome, error: Exception) -> RunOutcome:
    """*outcome* as any database can keep it, with the reason why its details are missing."""
    return outcome._replace(
        result=None,
        error_type=None if outcome.status == "succeeded" else "OutcomeRefused",
        error=f"the ledger could not keep how it ended: {refusal_text(error)}",
        traceback=None,
    )


def _outcomes(ends: Sequence[_End]) -> list[RunOutcome]:
    return [each.outcome for each in ends if each.outcome is not None]
