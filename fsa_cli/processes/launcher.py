"""Start claimed runs; record those that cannot start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from fsa_cli.exceptions import FsaError
from fsa_cli.ledger.claim_queued import requeue_claimed
from fsa_cli.ledger.records import ClaimedRun, RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.completer import Completer
from fsa_cli.processes.outage import Outage
from fsa_cli.processes.pool import RunPool
from fsa_cli.runner.run import Run

__all__ = ["BuildRun", "Launcher"]

#: Builds the run of a claim. Raises FsaError if that cannot be.
BuildRun = Callable[[ClaimedRun], Run]


class Launcher:
    """Starts the runs that this process has claimed.

    Args:
        late_ms: How late a run of each task may start.
        skipped: Called for each run that does not start: the task, the instant, the reason.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        pool: RunPool,
        completer: Completer,
        outage: Outage,
        build_run: BuildRun,
        *,
        late_ms: Mapping[str, int],
        skipped: Callable[[str, int, str], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._pool = pool
        self._completer = completer
        self._outage = outage
        self._build_run = build_run
        self._late_ms = late_ms
        self._skipped = skipped

    def begin(self, claimed: ClaimedRun) -> bool:
        """Start a run; False if its outcome is written already, or it was queued again."""
        self._completer.hold(claimed)
        late_ms = self._clock.now_ms - claimed.scheduled_ms
        if claimed.kind != "manual" and claimed.attempt == 1:
            allowed_ms = self._late_ms.get(claimed.task)
            if allowed_ms is not None and late_ms > allowed_ms:
                self._end(claimed, "missed", f"could not start within {allowed_ms / 1000:g} s")
                self._skipped(claimed.task, claimed.scheduled_ms, "it could not start in time")
                return False
        try:
            run = self._build_run(claimed)
        except FsaError as exc:
            self._end(claimed, "failed", exc.message, type(exc).__name__)
            self._skipped(claimed.task, claimed.scheduled_ms, exc.message)
            return False
        if not self._pool.submit(run):
            self.give_back([run])
            return False
        return True

    def give_back(self, runs: list[Run]) -> None:
        """Queue runs again that have not started, for any node."""
        claimed = [c for run in runs if (c := self._completer.claim_of(run.run_id)) is not None]
        with contextlib.suppress(Exception):  # then another node reaps it
            self._outage.guard(lambda: requeue_claimed(self._ledger, claimed))
        for each in claimed:
            self._completer.drop(each.run_id)

    def _end(self, claimed: ClaimedRun, status: str, error: str, kind: str | None = None) -> None:
        now_ms = self._clock.now_ms
        self._completer.end(
            RunOutcome(
                run_id=claimed.run_id,
                token=claimed.token,
                task=claimed.task,
                status=status,
                started_ms=now_ms,
                finished_ms=now_ms,
                error_type=kind,
                error=error,
            )
        )
