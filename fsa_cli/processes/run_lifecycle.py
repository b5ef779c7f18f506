"""The life of a run in this process: claimed, started, ended, its outcome written.

`claiming` gives the token of a claim, `start` builds the run and hands it to the pool, the pool
calls `_ended`, and the completer writes the outcome and lets go of the run.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from fsa_cli.exceptions import FsaError
from fsa_cli.ledger.claim_queued import requeue_claimed
from fsa_cli.ledger.records import ClaimedRun, RunOutcome
from fsa_cli.processes.active_runs import ActiveRun, ActiveRuns
from fsa_cli.processes.completer import Completer
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.pool import RunPool
from fsa_cli.runner.outcome import encode_result, error_fields
from fsa_cli.runner.retry import RetryPolicy, asked_again
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.task_context import Progress
from fsa_cli.terminal.escaping import escape_record
from fsa_cli.terminal.user_code import summarize_error

__all__ = ["BuildRun", "RunLifecycle", "RunSource", "outcome_of"]

#: Builds the run of a claim, which reports its progress to a function. Whatever it raises is that
#: run's failure.
BuildRun = Callable[[ClaimedRun, Callable[[Progress], None]], Run]

logger = logging.getLogger("fsa.scheduler")
logger.addFilter(escape_record)

_OVERDUE_BY_S = 1.0


@dataclass(frozen=True)
class RunSource:
    """What the app says about claimed runs.

    Attributes:
        build: Builds the run of a claim.
        applied: Which runs have taken effect in databases that are not the ledger's.
        late_ms: How late a run of each task may start.
    """

    build: BuildRun
    applied: Callable[[Sequence[str]], set[str]]
    late_ms: Mapping[str, int]


class RunLifecycle:
    """The runs of this process.

    Args:
        concurrency: How many go on at a time.
        busy: As in `Completer`.
    """

    def __init__(
        self,
        context: NodeContext,
        source: RunSource,
        concurrency: int,
        busy: Callable[[], bool],
    ) -> None:
        self._context = context
        self._source = source
        self._is_draining = False
        self.runs = ActiveRuns()
        self.pool = RunPool(concurrency, self._started, self._ended)
        self.completer = Completer(context, self.runs, busy)

    # -- claimed, and started ------------------------------------------------------------------

    def claiming(self) -> AbstractContextManager[str]:
        """The token of one claim; `add` what was claimed before it ends."""
        return self.runs.claiming()

    def add(self, claimed: Sequence[ClaimedRun]) -> list[ActiveRun]:
        return self.runs.add(claimed)

    def start(self, active: ActiveRun) -> bool:
        """Start a run; False if its outcome is decided already, or it was queued again."""
        claim = active.claim
        try:
            if (limit_ms := self._late_for(claim)) is not None:
                reason = f"could not start within {limit_ms / 1000:g} s"
                self._refuse(active, "missed", reason, told="it could not start in time")
                return False
            active.run = self._source.build(claim, active.note_progress)
        except FsaError as exc:
            self._refuse(active, "failed", exc.message, type(exc).__name__)
            return False
        except BaseException as exc:  # the user's own code too, as a validator's
            kind, message, _ = error_fields(exc)
            self._refuse(active, "failed", message or "", kind, told=summarize_error(exc))
            return False
        if not self.pool.submit(active):
            self.give_back([active])
            return False
        return True

    def cancel(self, run_ids: set[str]) -> None:
        """Cancel those of these runs that this process has. What waits never starts."""
        waiting = self.pool.withdraw(run_ids)
        self.give_back(waiting)
        for claim in (each.claim for each in waiting):
            self._context.events.run_not_started(
                claim.task, claim.scheduled_ms, "cancelled", "before it began", claim.run_id
            )
        for active in self.pool.active:
            if active.claim.run_id in run_ids:
                self.pool.cancel_run(active)

    def give_back(self, active: Sequence[ActiveRun]) -> None:
        """Queue runs again that have not started, for any node; one that is cancelled has ended."""
        claims = [each.claim for each in active]
        with contextlib.suppress(Exception):  # then another node reaps it
            self._context.outage.guard(lambda: requeue_claimed(self._context.ledger, claims))
        self.runs.drop(active)

    def _late_for(self, claim: ClaimedRun) -> int | None:
        """How late it might start, if it is later."""
        if claim.kind == "manual" or claim.attempt > 1:
            return None
        limit_ms = self._source.late_ms.get(claim.task)
        late_ms = self._context.clock.now_ms - claim.scheduled_ms
        return limit_ms if limit_ms is not None and late_ms > limit_ms else None

    def _refuse(
        self,
        active: ActiveRun,
        status: str,
        error: str,
        kind: str | None = None,
        *,
        told: str | None = None,
    ) -> None:
        """End a run that cannot start."""
        now_ms = self._context.clock.now_ms
        outcome = _bare_outcome(active.claim, status, now_ms, error_type=kind, error=error)
        self.completer.end(active, outcome._replace(started_ms=now_ms))
        claim = active.claim
        reason = told or error
        self._context.events.run_not_started(
            claim.task, claim.scheduled_ms, status, reason, claim.run_id
        )

    def _started(self, active: ActiveRun) -> None:
        assert active.run is not None
        self._context.events.run_started(active.run)

    # -- ended ---------------------------------------------------------------------------------

    def drain(self) -> None:
        """What is cancelled from now on is interrupted: the process ends."""
        self._is_draining = True

    def end_overdue(self) -> None:
        """Mark sync runs that are past their time-out. Their threads keep the slot and the lock."""
        for active in self.pool.overdue():
            run = active.run
            if run is None or active.timed_out:
                continue
            run.stop.set()
            run.statements.end_of_thread()
            if active in self.pool.overdue(by_s=_OVERDUE_BY_S):
                active.timed_out = True
                now_ms = self._context.clock.now_ms
                outcome = _bare_outcome(
                    active.claim,
                    "timed_out",
                    now_ms,
                    error_type="TimedOut",
                    error=f"{run.task.name} took longer than {run.timeout_s:g} s; its thread "
                    "goes on",
                )
                started_ms = now_ms - round((run.timeout_s or 0) * 1000)
                self.completer.end(active, outcome._replace(started_ms=started_ms, keeps_lock=True))

    def mark_interrupted(self) -> None:
        """Record what still runs as interrupted: its threads end with the process."""
        for active in self.pool.active:
            if active.timed_out:
                self.completer.free(active)
            else:
                active.marked = True
                self.completer.end(active, self._interrupted(active))

    def _ended(self, active: ActiveRun, result: RunResult | None) -> None:
        """Decide the outcome of a run whose execution has ended; a *result* of None: cancelled."""
        run = active.run
        assert run is not None
        if result is not None and result.status == "failed" and run.stop.is_set():
            result = None  # it was cancelled
        outcome: RunOutcome | None = None
        if active.timed_out:
            self.completer.free(active)
        elif not active.marked:
            try:
                outcome = self._outcome(active, run, result)
            except BaseException as exc:  # whatever it is, the run ends
                kind, message, traceback = error_fields(exc)
                told = "the end of a run of %s cannot be told in full\n%s"
                logger.error(told, run.task.name, traceback)
                bare = _bare_outcome(
                    active.claim,
                    "failed",
                    self._context.clock.now_ms,
                    error_type=kind,
                    error=message,
                )
                outcome = bare._replace(traceback=traceback)
            self.completer.end(active, outcome)
        self._context.events.run_finished(run, result, outcome)

    def _outcome(self, active: ActiveRun, run: Run, result: RunResult | None) -> RunOutcome:
        if result is None and self._is_draining:
            return self._interrupted(active)
        took_effect = result is not None and not result.succeeded and self._took_effect(run, result)
        now_ms = self._context.clock.now_ms
        return outcome_of(run, active.claim, result, now_ms, took_effect=took_effect)

    def _took_effect(self, run: Run, result: RunResult) -> bool:
        """Whether a run that failed here has committed all the same, in another database."""
        if not (result.at_commit or result.attempt > 1):
            return False
        applied = self._context.outage.guard(lambda: self._source.applied([run.run_id]))
        return bool(applied)

    def _interrupted(self, active: ActiveRun) -> RunOutcome:
        run = active.run
        is_retried = run is not None and run.task.on_crash == "retry"
        bare = _bare_outcome(
            active.claim,
            "interrupted",
            self._context.clock.now_ms,
            error_type="Interrupted",
            error="its process was stopped before it ended",
        )
        return bare._replace(retry_in_ms=0) if is_retried else bare


def outcome_of(
    run: Run,
    claimed: ClaimedRun,
    result: RunResult | None,
    now_ms: int,
    *,
    took_effect: bool = False,
) -> RunOutcome:
    """The outcome of a run as the ledger keeps it; a *result* of None means cancelled.

    Args:
        took_effect: Its COMMIT failed for this process, and has happened all the same.
    """
    if result is None:
        return _bare_outcome(claimed, "cancelled", now_ms)
    error_type, error, traceback = error_fields(None if took_effect else result.error)
    pause_s = None if took_effect else RetryPolicy.of(run.task).pause_after_s(result)
    recorded = run.fence is not None and run.fence.recorded
    return RunOutcome(
        run_id=claimed.run_id,
        token=claimed.token,
        task=run.task.name,
        status="succeeded" if took_effect else result.status,
        started_ms=now_ms - round(result.duration_ms),
        finished_ms=now_ms,
        result=encode_result(result.value) if result.succeeded and not recorded else None,
        error_type=error_type,
        error=error,
        traceback=traceback,
        retry_in_ms=None if pause_s is None else round(pause_s * 1000),
        counts=asked_again(result) is None,
        recorded=recorded and result.succeeded,
    )


def _bare_outcome(
    claim: ClaimedRun,
    status: str,
    now_ms: int,
    *,
    error_type: str | None = None,
    error: str | None = None,
) -> RunOutcome:
    """An outcome of which no more is known; it began when it was claimed."""
    return RunOutcome(
        run_id=claim.run_id,
        token=claim.token,
        task=claim.task,
        status=status,
        started_ms=None,
        finished_ms=now_ms,
        error_type=error_type,
        error=error,
    )
