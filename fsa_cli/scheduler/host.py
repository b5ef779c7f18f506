"""The process behind `fsa scheduler start`: timer, executor, signals, and a clean end."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import FrameType
from typing import Protocol

from fsa_cli.exceptions import SchedulerStuck
from fsa_cli.executors.local import LocalExecutor
from fsa_cli.runner import Run, RunResult
from fsa_cli.scheduler.plan import Scheduled
from fsa_cli.scheduler.timer import Timer

__all__ = ["Host", "Left", "Listener"]

_PULSE_S = 5.0
# A cancelled task has this long for its rollback: Kubernetes kills 30 s after SIGTERM, grace is 25.
_CANCEL_S = 3.0
_CANCEL_NOW_S = 0.5


class Listener(Protocol):
    """Who is told what happens; called from several threads."""

    def finished(self, run: Run, result: RunResult) -> None: ...
    def cancelled(self, run: Run) -> None: ...
    def skipped(self, name: str, instant: datetime, reason: str) -> None: ...
    def stopping(self, signal_name: str, running: Sequence[Run], grace_s: float) -> None: ...


@dataclass(frozen=True)
class Left:
    """What had not ended when the host gave up waiting."""

    signal: signal.Signals
    runs: tuple[Run, ...]


class Host:
    """Runs what is planned until a signal comes, then waits for what is running.

    Args:
        order: Makes the run of a task for an instant.
        concurrency: How many runs go on at a time.
        grace_s: How long running tasks may go on after SIGTERM or SIGINT.
        pulse: Called every few seconds while all is well.
    """

    def __init__(
        self,
        planned: Sequence[Scheduled],
        order: Callable[[Scheduled, datetime], Run],
        listener: Listener,
        *,
        concurrency: int,
        grace_s: float,
        pulse: Callable[[], None],
    ) -> None:
        self._planned = {scheduled.task.name: scheduled for scheduled in planned}
        self._order = order
        self._listener = listener
        self._grace_s = grace_s
        self._pulse = pulse
        # A SimpleQueue: a signal handler may put to it while this very thread waits on it.
        self._inbox: queue.SimpleQueue[signal.Signals | None] = queue.SimpleQueue()
        self._executor = LocalExecutor(concurrency, self._finished)
        self._timer = Timer(self._fire)

    def run(self) -> Left | None:
        """Host the schedule until SIGTERM or SIGINT; None if everything that ran has ended.

        Raises:
            SchedulerStuck: the timer's thread died.
        """
        with self._signals():
            for name, scheduled in self._planned.items():
                self._timer.add(name, scheduled.schedule)
            self._timer.start()
            number = self._until_signal()
            self._timer.stop()
            return self._drain(number)

    def _fire(self, name: str, instants: list[datetime]) -> None:
        """An instant has come. After a standstill only the latest is run, and the rest is told."""
        *passed, instant = instants
        if passed:
            reason = f"{len(passed)} more instants passed while the process stood still"
            self._listener.skipped(name, passed[0], reason)
        if name in self._executor.busy:
            self._listener.skipped(name, instant, "the run before it has not ended")
        else:
            self._executor.submit(self._order(self._planned[name], instant))

    def _finished(self, run: Run, result: RunResult | None) -> None:
        if result is None:
            self._listener.cancelled(run)
        else:
            self._listener.finished(run, result)
        self._inbox.put(None)

    def _until_signal(self) -> signal.Signals:
        while True:
            self._pulse()
            until = time.monotonic() + _PULSE_S
            while (left := until - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    if (number := self._inbox.get(timeout=left)) is not None:
                        return number
            if not self._timer.alive:
                raise SchedulerStuck("APScheduler's thread has died: nothing is run any more")
            self._timer.wake()

    def _drain(self, number: signal.Signals) -> Left | None:
        for run in self._executor.close():
            assert run.scheduled_at is not None
            self._listener.skipped(run.task.name, run.scheduled_at, "the scheduler was stopped")
        if self._executor.running:
            self._listener.stopping(number.name, self._executor.running, self._grace_s)
        again = self._wait(self._grace_s)
        left = tuple(self._executor.running)
        if left:
            self._executor.cancel()
            self._wait(_CANCEL_NOW_S if again else _CANCEL_S)
            return Left(again or number, left)
        self._executor.stop()
        return None

    def _wait(self, seconds: float) -> signal.Signals | None:
        """Wait until nothing runs, for so long, or until a signal comes, which is returned."""
        until = time.monotonic() + seconds
        while self._executor.running and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                if (number := self._inbox.get(timeout=left)) is not None:
                    return number
        return None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT go to the inbox; also as PID 1, where they would be ignored."""
        assert threading.current_thread() is threading.main_thread()

        def note(number: int, frame: FrameType | None) -> None:
            self._inbox.put(signal.Signals(number))

        previous = {
            number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
