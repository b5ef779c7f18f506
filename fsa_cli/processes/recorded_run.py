"""The ledger's record of a run that a person starts with `fsa run-task`."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from fastapi_sqlalchemy.exceptions import DBSessionError
from fsa_cli.database.connections import driver_message
from fsa_cli.exceptions import DatabaseUnreachable, LockHeld
from fsa_cli.ledger import control, effects, queries
from fsa_cli.ledger.attempts import write_attempts
from fsa_cli.ledger.enqueue import insert_running
from fsa_cli.ledger.fence import Fence
from fsa_cli.ledger.finish import count_outcomes, write_outcomes
from fsa_cli.ledger.offload import within
from fsa_cli.ledger.progress import write_progress
from fsa_cli.ledger.records import ClaimedRun, RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.tables import NAME_LENGTH
from fsa_cli.ledger.time import instant_of
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.completer import without_details
from fsa_cli.processes.lease import Lease
from fsa_cli.processes.outage import Outage
from fsa_cli.processes.run_lifecycle import outcome_of
from fsa_cli.runner.outcome import encode_result, progress_fields
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.runs.requester import requester
from fsa_cli.tasks.kept_arguments import as_shown
from fsa_cli.tasks.locks import lock_of
from fsa_cli.tasks.signature import signature_of
from fsa_cli.tasks.task_context import Progress

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["RecordedRun"]

_LOOKED_EVERY_S = 1.0
_AGAIN_S = 0.5
_SILENT_S = 2.0
# So long the ledger is told how a run has ended that was stopped, or that another attempt begins.
_TOLD_S = 10.0

T = TypeVar("T")


class RecordedRun:
    """A run of this process, with a lease that is renewed while it goes on."""

    def __init__(
        self,
        ledger: Ledger,
        lease_s: float,
        run: Run,
        name: str,
        locks: bool,
        warn: Callable[[str], None],
    ) -> None:
        self.stop = threading.Event()
        """Set, it makes the task's `cancelled` true."""
        self.cancelled = False
        """Whether somebody has cancelled it: SIGTERM is on its way."""
        self._ledger = ledger
        self._lease_s = lease_s
        self._warn = warn
        self._clock = Clock()
        self._outage = Outage(warn, ledger.where)
        assert run.database is not None
        self._database = run.database
        self._fenced = _prepared(ledger, run.database)
        self._lease = Lease(
            ledger, self._clock, self._outage, role="command", lease_s=lease_s, tasks={}
        )
        self._lease.join()
        self._lease.start()
        try:
            self._claimed = self._begin(run, name, locks)
        except BaseException:
            self._lease.stop()
            raise
        self._run: Run | None = None
        self._progress: Progress | None = None
        self._closed = threading.Event()
        self._tried = threading.Event()
        self._left = threading.Event()
        self._is_recorded = False
        self._thread = threading.Thread(target=self._look, name="fsa record", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str:
        return self._claimed.run_id

    @property
    def committed(self) -> bool:
        """Whether the last attempt's COMMIT has happened."""
        run = self._run
        return run is not None and run.fence is not None and run.fence.recorded

    def attempt(self, run: Run) -> Run:
        """*run*, fenced: what it commits counts only while the run is this process's."""
        if run.attempt > 1:
            self._guard(lambda: control.record_attempt(self._ledger, self._claimed, run.attempt))
        if self._fenced:
            claimed = self._claimed
            fence = Fence(
                self._ledger, claimed.run_id, claimed.token, self._database, encode_result
            )
            run = replace(run, fence=fence)
        self._run = run
        return run

    def failed(self, result: RunResult) -> None:
        """Write how an attempt ended that another one follows."""
        assert self._run is not None
        end = outcome_of(self._run, self._claimed, result, self._clock.now_ms)

        def refused(error: Exception) -> None:
            write_attempts(self._ledger, [without_details(end, error)])

        self._guard(lambda: write_attempts(self._ledger, [end]), refused)

    def progress(self, progress: Progress) -> None:
        """Note how far the run has come; it is written about once a second."""
        self._progress = progress

    def ended(self, result: RunResult) -> None:
        """Write how the run ended; where the ledger is away, wait for it.

        After its lease other nodes take the run for one that was interrupted.
        """
        assert self._run is not None
        run, now_ms = self._run, self._clock.now_ms

        def end() -> RunOutcome:
            took_effect = result.at_commit and bool(self._outage.guard(self._applied))
            end = outcome_of(run, self._claimed, result, now_ms, took_effect=took_effect)
            # What a person starts, that person starts again.
            return end._replace(retry_in_ms=None)

        # What its COMMIT has recorded, the ledger knows.
        self._close(end, _TOLD_S if self.committed else 1.5 * self._lease_s)

    def broken(self, reason: str) -> None:
        """Write that the run was stopped before its end."""
        if self._closed.is_set():
            return
        if self.committed:
            end = self._end("succeeded", None, recorded=True)
        elif self.cancelled:
            end = self._end("cancelled", None)
        else:
            end = self._end("interrupted", reason)
        self._close(lambda: end, _TOLD_S)

    @property
    def unrecorded(self) -> DatabaseUnreachable | None:
        """Why the ledger does not know how the run has ended; None if it does."""
        if self._is_recorded or self.committed:
            return None
        return DatabaseUnreachable(
            f"the ledger does not take the end of 1 run: "
            f"{self._outage.reason or 'it does not answer'}",
            details=[self._ledger.where, f"run {self.run_id} of {self._claimed.task}"],
            hint="its row says `running`, and becomes `interrupted` once this process is known to "
            "be gone",
        )

    def _begin(self, run: Run, name: str, locks: bool) -> ClaimedRun:
        namespace = self._ledger.namespace
        own = run.task.oldest_name if run.task.aliases else name
        lock = lock_of(run.task, namespace) or f"{namespace}/{own}"
        claimed = insert_running(
            self._ledger,
            self._lease.id,
            name[:NAME_LENGTH],
            _arguments(run),
            lock_key=lock if locks else None,
            by=requester(),
        )
        if claimed is None:
            raise _held(self._ledger, name, lock)
        return claimed

    def _end(self, status: str, error: str | None, *, recorded: bool = False) -> RunOutcome:
        return RunOutcome(
            run_id=self._claimed.run_id,
            token=self._claimed.token,
            task=self._claimed.task,
            status=status,
            started_ms=self._claimed.scheduled_ms,
            finished_ms=self._clock.now_ms,
            error_type="Interrupted" if error else None,
            error=error,
            recorded=recorded,
        )

    def _close(self, end: Callable[[], RunOutcome], within_s: float) -> None:
        self._closed.set()
        thread = threading.Thread(target=self._tell, args=(end,), name="fsa end", daemon=True)
        thread.start()
        try:
            if not self._tried.wait(min(_SILENT_S, within_s)):
                self._warn(f"the ledger is not told yet how run {self.run_id} has ended")
                self._tried.wait(within_s - _SILENT_S)
        finally:
            self._left.set()
        thread.join(_SILENT_S)

    def _tell(self, end: Callable[[], RunOutcome]) -> None:
        """Write the end, until the ledger has taken it; the connections are closed after it."""
        self._thread.join(_LOOKED_EVERY_S)
        self._outage.guard(self._write_progress)
        outcome = end()

        def write() -> set[str]:
            return write_outcomes(self._ledger, [outcome])

        def refused(error: Exception) -> set[str] | None:
            plain = without_details(outcome, error)
            return self._outage.guard(lambda: write_outcomes(self._ledger, [plain]))

        while (lost := self._outage.guard(write, refused)) is None and self._outage.is_open:
            if self._left.wait(_AGAIN_S):
                return
        self._is_recorded = lost is not None
        self._tried.set()
        if lost:
            self._warn(f"run {self.run_id} was no longer this process's: its end does not count")
        elif lost is not None:
            self._outage.guard(lambda: count_outcomes(self._ledger, [outcome]))
        self._lease.stop()
        self._ledger.dispose()

    def _guard(
        self, work: Callable[[], T], refused: Callable[[Exception], T] | None = None
    ) -> None:
        """As the outage's own; what it waits for is left behind where that takes too long."""
        try:
            within(_TOLD_S, partial(self._outage.guard, work, refused))
        except TimeoutError:
            self._warn("the ledger does not answer")

    def _look(self) -> None:
        while not self._closed.wait(_LOOKED_EVERY_S):
            self._outage.guard(self._write_progress)
            if not self.cancelled and self._outage.guard(self._is_cancelled):
                self.cancelled = True
                self.stop.set()
                os.kill(os.getpid(), signal.SIGTERM)

    def _is_cancelled(self) -> bool:
        return self.run_id in control.cancel_requested(self._ledger, self._lease.id)

    def _write_progress(self) -> None:
        told, self._progress = self._progress, None
        if told is not None:
            write_progress(self._ledger, {self.run_id: progress_fields(told)})

    def _applied(self) -> bool:
        return bool(effects.applied(self._ledger, self._database, [self.run_id]))


def _prepared(ledger: Ledger, database: Database) -> bool:
    """Whether what is committed in *database* can be fenced."""
    try:
        return effects.prepare(ledger, database)
    except (SQLAlchemyError, DBSessionError):
        return False


def _arguments(run: Run) -> str:
    """The values as the ledger keeps them: JSON, without what is secret."""
    shown = as_shown(signature_of(run.task.function), run.arguments)
    return json.dumps(shown, ensure_ascii=False)


def _held(ledger: Ledger, name: str, lock: str) -> LockHeld:
    try:
        holder = queries.holder(ledger, lock)
    except SQLAlchemyError as exc:
        return LockHeld(f"{name} is locked", details=[driver_message(exc)], hint="try later")
    if holder is None:
        return LockHeld(f"{name} was locked a moment ago", hint="try again")
    by = f", started by {holder.requested_by}" if holder.requested_by else ""
    where = f" on {holder.host}, pid {holder.pid}" if holder.host else ""
    since = f"{instant_of(holder.started_ms):%Y-%m-%d %H:%M:%S} UTC" if holder.started_ms else "?"
    return LockHeld(
        f"{name} is locked: a run of {holder.task} goes on",
        details=[f"run {holder.id} since {since}{where}{by}"],
        hint=f"try later; fsa runs show {holder.id[:8]}",
    )
