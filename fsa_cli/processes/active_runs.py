"""The runs that this process has, each from before its claim is sent until its end is recorded."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fsa_cli.ledger.records import ClaimedRun
from fsa_cli.runner.activity import RunActivity
from fsa_cli.runner.run import Run
from fsa_cli.tasks.task_context import Progress

__all__ = ["ActiveRun", "ActiveRuns"]

_PROGRESS_EVERY_S = 1.0


@dataclass(eq=False)
class ActiveRun:
    """A run of this process.

    Attributes:
        run: What is executed; None before it could be built.
        started_s: When its execution began, by the monotonic clock; None before.
        timed_out: It is recorded as timed out, and its thread goes on: it keeps slot and lock.
        marked: It is recorded as interrupted, because the process ends.
        unrecorded: Why the database refuses its outcome, which is tried again; None: it does not.
        progress: What has not been written yet.
        activity: What it did when it was looked at last, as it was written.
    """

    claim: ClaimedRun
    run: Run | None = None
    started_s: float | None = None
    timed_out: bool = False
    marked: bool = False
    unrecorded: str | None = None
    progress: Progress | None = None
    activity: RunActivity | None = None
    _progress_at_s: float = float("-inf")

    @property
    def key(self) -> tuple[str, str]:
        return self.claim.run_id, self.claim.token

    def note_progress(self, progress: Progress) -> None:
        """Note how far it has come; about one a second is kept, and the last."""
        now_s = time.monotonic()
        if now_s - self._progress_at_s >= _PROGRESS_EVERY_S or progress.finished:
            self._progress_at_s = now_s
            self.progress = progress


class ActiveRuns:
    """One registry, by id and token: a run that was lost may be claimed here a second time, while
    the thread of the first claim still goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], ActiveRun] = {}
        self._claiming: set[str] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[ActiveRun]:
        with self._lock:
            return iter(list(self._runs.values()))

    @contextlib.contextmanager
    def claiming(self) -> Iterator[str]:
        """A token for one claim: while inside, every run that carries it is this process's.

        What was claimed is added before this ends. A claim may wait for another transaction's lock,
        and is committed before its answer is here: by its age a row would be taken for a stray.
        """
        token = uuid.uuid4().hex
        with self._lock:
            self._claiming.add(token)
        try:
            yield token
        finally:
            with self._lock:
                self._claiming.discard(token)

    def add(self, claimed: Iterable[ClaimedRun]) -> list[ActiveRun]:
        active = [ActiveRun(each) for each in claimed]
        with self._lock:
            self._runs.update({each.key: each for each in active})
        return active

    def holds(self, run_id: str, token: str | None) -> bool:
        """Whether a row that carries *token* is this process's."""
        with self._lock:
            return token in self._claiming or (run_id, token) in self._runs

    def drop(self, active: Iterable[ActiveRun]) -> None:
        """Let go of runs whose end the database has acknowledged, or that were queued again."""
        with self._lock:
            for each in active:
                self._runs.pop(each.key, None)
