"""Write the outcomes of runs in batches, until the database has acknowledged them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from fsa_cli.ledger.finish import finish, free
from fsa_cli.ledger.progress import write_progress
from fsa_cli.ledger.records import ClaimedRun, RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.outage import Outage
from fsa_cli.runner.outcome import encode_result, error_fields
from fsa_cli.runner.retry import RetryPolicy, is_retryable
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.context import Progress

__all__ = ["Completer", "outcome_of"]
_PROGRESS_EVERY_S = 1.0
_AGAIN_S = 0.5
# Outcomes of so long are one transaction: longer while runs wait for a slot, whose start the
# writing would only delay.
_GATHERED_S = 0.01
_GATHERED_BUSY_S = 0.25


class Completer:
    """Holds each run of this node from its claim until the database has acknowledged its outcome.

    Args:
        lost: Called with the ids of runs that were no longer ours when they ended.
        busy: Whether runs wait that could start.
        written: Called when outcomes were written, and the locks of these runs are free.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        outage: Outage,
        lost: Callable[[set[str]], None] = lambda run_ids: None,
        busy: Callable[[], bool] = lambda: False,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._outage = outage
        self._lost = lost
        self._busy = busy
        self._written = written
        self._queue: queue.SimpleQueue[RunOutcome | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held: dict[str, ClaimedRun] = {}
        self._progress: dict[str, Progress] = {}
        self._told_s: dict[str, float] = {}
        self._thread = threading.Thread(target=self._serve, name="fsa outcomes", daemon=True)
        self._thread.start()

    @property
    def held(self) -> set[str]:
        """The runs of this node: claimed, and their outcome not acknowledged."""
        with self._lock:
            return set(self._held)

    @property
    def alive(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def hold(self, claimed: ClaimedRun) -> None:
        with self._lock:
            self._held[claimed.run_id] = claimed

    def claim_of(self, run_id: str) -> ClaimedRun | None:
        with self._lock:
            return self._held.get(run_id)

    def drop(self, run_id: str) -> None:
        """Let go of a run that was queued again."""
        with self._lock:
            self._held.pop(run_id, None)

    def end(self, ended: RunOutcome) -> None:
        """Write an outcome soon."""
        self._queue.put(ended)

    def free(self, run_id: str) -> None:
        """Free the lock of a run that had timed out and has returned."""
        claimed = self.claim_of(run_id)
        if claimed is not None:
            self._outage.guard(lambda: free(self._ledger, run_id, claimed.token))
            self.drop(run_id)

    def progress(self, run_id: str, progress: Progress) -> None:
        """Note how far a run has come; it is written about once a second."""
        now_s = time.monotonic()
        if now_s - self._told_s.get(run_id, 0.0) < _PROGRESS_EVERY_S and not progress.finished:
            return
        self._told_s[run_id] = now_s
        with self._lock:
            self._progress[run_id] = progress

    def write_progress(self) -> None:
        """Write the progress noted since the last call."""
        with self._lock:
            told, self._progress = self._progress, {}
            self._told_s = {i: at for i, at in self._told_s.items() if i in self._held}
        if told:
            write_progress(
                self._ledger, {i: (each.done, each.total, each.text) for i, each in told.items()}
            )

    def close(self, within_s: float) -> bool:
        """Write the outcomes that are left; whether all were written within *within_s*."""
        self._queue.put(None)
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        closing = False
        while not closing:
            batch = [self._queue.get()]
            if batch[0] is not None:
                self._gather()
            while not self._queue.empty():
                batch.append(self._queue.get())
            closing = None in batch
            ends = [each for each in batch if each is not None]
            if ends:
                self._write(ends)

    def _gather(self) -> None:
        until_s = time.monotonic() + _GATHERED_BUSY_S
        time.sleep(_GATHERED_S)
        while self._busy() and time.monotonic() < until_s:
            time.sleep(_GATHERED_S)

    def _write(self, ends: list[RunOutcome]) -> None:
        while (lost := self._outage.guard(lambda: finish(self._ledger, ends))) is None:
            time.sleep(_AGAIN_S)
        self._written()  # before they are let go: a waiting claimer would find nothing to do
        with self._lock:
            for each in ends:
                if not each.keeps_lock:
                    self._held.pop(each.run_id, None)
        if lost:
            self._lost(lost)


def outcome_of(
    run: Run,
    claimed: ClaimedRun,
    result: RunResult | None,
    clock: Clock,
    *,
    took_effect: bool = False,
) -> RunOutcome:
    """The outcome of a run as the ledger keeps it; a *result* of None means cancelled.

    Args:
        took_effect: Its COMMIT failed for this process, and has happened all the same.
    """
    now_ms = clock.now_ms
    if result is None:
        return RunOutcome(
            run_id=run.run_id,
            token=claimed.token,
            task=run.task.name,
            status="cancelled",
            started_ms=None,
            finished_ms=now_ms,
        )
    error_type, error, traceback = error_fields(None if took_effect else result.error)
    retries = RetryPolicy(run.task.retries, run.task.backoff_s, longest_s=3600.0)
    again = not took_effect and result.attempt <= retries.retries and is_retryable(result)
    recorded = run.fence is not None and run.fence.recorded
    return RunOutcome(
        run_id=run.run_id,
        token=claimed.token,
        task=run.task.name,
        status="succeeded" if took_effect else result.status,
        started_ms=now_ms - round(result.duration_ms),
        finished_ms=now_ms,
        result=encode_result(result.value) if result.succeeded and not recorded else None,
        error_type=error_type,
        error=error,
        traceback=traceback,
        retry_in_ms=round(retries.pause_s(result.attempt) * 1000) if again else None,
        recorded=recorded and result.succeeded,
    )
