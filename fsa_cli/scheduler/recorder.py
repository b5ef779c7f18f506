"""Writes down how runs end, in batches, until the database has acknowledged it."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable

from fsa_cli import report
from fsa_cli.context import Progress
from fsa_cli.executors.isolated import RemoteError
from fsa_cli.ledger import history
from fsa_cli.ledger.claims import Claimed
from fsa_cli.ledger.finishes import Finish, finish, free
from fsa_cli.ledger.store import Ledger
from fsa_cli.output import traceback_text
from fsa_cli.retrying import Retries, may_succeed
from fsa_cli.runner import Run, RunResult
from fsa_cli.scheduler.clock import Clock
from fsa_cli.scheduler.trouble import Trouble
from fsa_cli.secrets import mask

__all__ = ["Recorder", "encoded", "end_of", "told_of"]

_LONGEST = 64 * 1024
_PROGRESS_EVERY_S = 1.0
_AGAIN_S = 0.5
# What ends within so long is one transaction: longer while others wait for a slot, which recording
# would only keep from beginning.
_GATHERED_S = 0.01
_GATHERED_BUSY_S = 0.25


class Recorder:
    """A finished run stays this node's until the database has acknowledged its end.

    Args:
        lost: Called with the ids of runs that were no longer ours when they ended.
        busy: Whether runs wait that could begin.
        written: Called when ends were written, and what these runs had locked is free.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        trouble: Trouble,
        lost: Callable[[set[str]], None] = lambda run_ids: None,
        busy: Callable[[], bool] = lambda: False,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._trouble = trouble
        self._lost = lost
        self._busy = busy
        self._written = written
        self._queue: queue.SimpleQueue[Finish | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held: dict[str, Claimed] = {}
        self._progress: dict[str, Progress] = {}
        self._told_s: dict[str, float] = {}
        self._thread = threading.Thread(target=self._serve, name="fsa finishes", daemon=True)
        self._thread.start()

    @property
    def held(self) -> set[str]:
        """The runs that are this node's: claimed, and their end not acknowledged."""
        with self._lock:
            return set(self._held)

    @property
    def alive(self) -> bool:
        """Whether its thread is there."""
        return self._thread.is_alive()

    def hold(self, claimed: Claimed) -> None:
        with self._lock:
            self._held[claimed.run_id] = claimed

    def claim_of(self, run_id: str) -> Claimed | None:
        with self._lock:
            return self._held.get(run_id)

    def drop(self, run_id: str) -> None:
        """It was given back."""
        with self._lock:
            self._held.pop(run_id, None)

    def end(self, ended: Finish) -> None:
        """Write it down soon."""
        self._queue.put(ended)

    def free(self, run_id: str) -> None:
        """A run that had timed out has returned: its lock is free."""
        claimed = self.claim_of(run_id)
        if claimed is not None:
            self._trouble.met(lambda: free(self._ledger, run_id, claimed.token))
            self.drop(run_id)

    def progress(self, run_id: str, progress: Progress) -> None:
        """How far a run has come; written about once a second."""
        now_s = time.monotonic()
        if now_s - self._told_s.get(run_id, 0.0) < _PROGRESS_EVERY_S and not progress.finished:
            return
        self._told_s[run_id] = now_s
        with self._lock:
            self._progress[run_id] = progress

    def write_progress(self) -> None:
        """Called now and then."""
        with self._lock:
            told, self._progress = self._progress, {}
            self._told_s = {i: at for i, at in self._told_s.items() if i in self._held}
        if told:
            history.write_progress(
                self._ledger, {i: (each.done, each.total, each.text) for i, each in told.items()}
            )

    def close(self, within_s: float) -> bool:
        """Write what is left; whether all of it was written in time."""
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

    def _write(self, ends: list[Finish]) -> None:
        while (lost := self._trouble.met(lambda: finish(self._ledger, ends))) is None:
            time.sleep(_AGAIN_S)
        self._written()  # before they are let go: who waits for them would find nothing to do
        with self._lock:
            for each in ends:
                if not each.keeps_lock:
                    self._held.pop(each.run_id, None)
        if lost:
            self._lost(lost)


def end_of(
    run: Run,
    claimed: Claimed,
    result: RunResult | None,
    clock: Clock,
    *,
    took_effect: bool = False,
) -> Finish:
    """What the ledger keeps of a run's end; a *result* of None: it was cancelled.

    Args:
        took_effect: It failed for this process, and is committed all the same.
    """
    now_ms = clock.now_ms
    if result is None:
        return Finish(
            run_id=run.run_id,
            token=claimed.token,
            task=run.task.name,
            status="cancelled",
            started_ms=None,
            finished_ms=now_ms,
        )
    error_type, error, traceback = told_of(None if took_effect else result.error)
    retries = Retries(run.task.retries, run.task.backoff_s, longest_s=3600.0)
    again = not took_effect and result.attempt <= retries.retries and may_succeed(result)
    recorded = run.fence is not None and run.fence.recorded
    return Finish(
        run_id=run.run_id,
        token=claimed.token,
        task=run.task.name,
        status="succeeded" if took_effect else result.status,
        started_ms=now_ms - round(result.duration_ms),
        finished_ms=now_ms,
        result=encoded(result.value) if result.succeeded and not recorded else None,
        error_type=error_type,
        error=error,
        traceback=traceback,
        retry_in_ms=round(retries.pause_s(result.attempt) * 1000) if again else None,
        recorded=recorded and result.succeeded,
    )


def told_of(error: BaseException | None) -> tuple[str | None, str | None, str | None]:
    """An error's type, its message and its traceback, with passwords masked."""
    if error is None:
        return None, None, None
    leaf = report.culprit(error)
    traceback = leaf.traceback if isinstance(leaf, RemoteError) else traceback_text(error)
    return type(leaf).__name__, _told(str(leaf)), _told(traceback) if traceback else None


def encoded(value: object) -> str | None:
    """What a task returned as JSON; None stays None, and what is too long is cut."""
    if value is None:
        return None
    text = mask(json.dumps(report.jsonable(value), ensure_ascii=False))
    if len(text.encode()) <= _LONGEST:
        return text
    return json.dumps(text.encode()[: _LONGEST // 2].decode(errors="ignore") + " ... (cut)")


def _told(text: str) -> str:
    """*text* as every database can keep it: passwords masked, no NUL, nothing but characters."""
    text = mask(text).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST else "... " + text[-_LONGEST:]
