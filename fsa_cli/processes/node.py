"""The process behind `fsa scheduler start`: fire, claim, execute, record, drain."""

from __future__ import annotations

import contextlib
import gc
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import FrameType
from typing import Protocol

from fsa_cli.exceptions import SchedulerStuck
from fsa_cli.ledger.backfill import backfill, register_tasks
from fsa_cli.ledger.maintenance import Died
from fsa_cli.ledger.records import RegisteredTask, RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.ledger.time import instant_of
from fsa_cli.processes.broker_dispatcher import BrokerDispatcher
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.completer import Completer, outcome_of
from fsa_cli.processes.launcher import BuildRun, Launcher
from fsa_cli.processes.lease import Lease
from fsa_cli.processes.local_dispatcher import LocalDispatcher
from fsa_cli.processes.maintenance import Maintenance
from fsa_cli.processes.notifications import Notifications
from fsa_cli.processes.outage import Outage
from fsa_cli.processes.pool import RunPool
from fsa_cli.processes.schedule_plan import Scheduled, catch_up
from fsa_cli.processes.timer import Timer
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.runs.executor import Executor

__all__ = ["Listener", "Node", "NodeOptions", "ServiceThread", "Unfinished"]

_PULSE_S = 5.0
_POLLED_EVERY_S = 1.0
_LOOK_S = 0.5
_JUMPED_S = 0.2
# A cancelled task has this long for its rollback: Kubernetes kills 30 s after SIGTERM, grace is 25.
_CANCEL_S = 3.0
_CANCEL_NOW_S = 0.5
_STUCK_MS = 5000
_SKEW_S = 1.0
# Python's 5 ms is how long a thread that has its answer waits for one that computes.
_SWITCH_S = 0.001


class Listener(Protocol):
    """Hears what happens; called from several threads."""

    def finished(self, run: Run, result: RunResult, again: bool) -> None: ...
    def cancelled(self, run: Run) -> None: ...
    def skipped(self, name: str, instant: datetime, reason: str) -> None: ...
    def died(self, died: Died) -> None: ...
    def lost(self, run_ids: set[str]) -> None: ...
    def warn(self, text: str) -> None: ...
    def stopping(self, signal_name: str, running: Sequence[Run], grace_s: float) -> None: ...


class ServiceThread(Protocol):
    """A service whose thread must live."""

    @property
    def alive(self) -> bool: ...


@dataclass(frozen=True)
class Unfinished:
    """The runs that had not ended when the node gave up waiting."""

    signal: signal.Signals
    runs: tuple[Run, ...]


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """How a node works.

    Attributes:
        concurrency: How many runs go on at a time.
        grace_s: How long running tasks may go on after SIGTERM or SIGINT.
        lease_s: How long the other nodes take this one for alive after its last renewal.
        pulse: Called every few seconds while all is well.
    """

    concurrency: int
    grace_s: float
    lease_s: float = 20.0
    pulse: Callable[[], None] = lambda: None


class Node:
    """Runs what is scheduled and what is queued, until a signal comes.

    Args:
        planned: The schedules that it fires.
        known: The tasks as the ledger registers them.
        locks: Every task that it can run, and the lock of each.
        brokers: By name, each with the locks of the tasks whose runs it carries.
        build_run: Builds the run of a claim.
        applied: Which runs have taken effect in databases that are not the ledger's.
        prune: Deletes the marks of runs that the ledger has pruned.
    """

    def __init__(
        self,
        ledger: Ledger,
        planned: Sequence[Scheduled],
        known: Sequence[RegisteredTask],
        locks: Mapping[str, str | None],
        brokers: Mapping[str, tuple[Executor, Mapping[str, str | None]]],
        build_run: BuildRun,
        applied: Callable[[Sequence[str]], set[str]],
        prune: Callable[[], None],
        listener: Listener,
        options: NodeOptions,
        *,
        role: str = "scheduler",
    ) -> None:
        self._ledger = ledger
        self._planned = planned
        self._known = known
        self._locks = locks
        self._applied = applied
        self._listener = listener
        self._options = options
        # A SimpleQueue: a signal handler may put to it while this very thread waits on it.
        self._inbox: queue.SimpleQueue[signal.Signals | None] = queue.SimpleQueue()
        self._hosting = self._stopping = False
        self.clock = Clock()
        self._notifications = Notifications()
        self.outage = Outage(listener.warn, ledger.where)
        self.lease = Lease(
            ledger,
            self.clock,
            self.outage,
            role=role,
            lease_s=options.lease_s,
            # A tick stands for no instant: it is gone before the next one comes.
            tasks={e.task.name: e.schedule_hash for e in planned if role == "scheduler"},
            rejoined=lambda: listener.warn("this node was declared dead; it has a new id"),
        )
        self.pool = RunPool(options.concurrency, self._finished, self._notifications.began)
        self._completer = Completer(
            ledger,
            self.clock,
            self.outage,
            listener.lost,
            busy=lambda: not self._stopping and self.local_dispatcher.backlog > 0,
            written=self._released,
        )

        def skipped(name: str, instant_ms: int, reason: str) -> None:
            listener.skipped(name, instant_of(instant_ms), reason)

        self._launcher = Launcher(
            ledger,
            self.clock,
            self.pool,
            self._completer,
            self.outage,
            build_run,
            late_ms={each.task.name: _late_ms(each) for each in planned},
            skipped=skipped,
        )
        self.local_dispatcher = LocalDispatcher(
            ledger,
            self.clock,
            self.lease,
            self.pool,
            self._launcher,
            self.outage,
            locks=locks,
            skipped=skipped,
        )
        self.broker_dispatcher = BrokerDispatcher(
            ledger,
            self.clock,
            self.lease,
            self.outage,
            listener.warn,
            brokers,
            skipped=skipped,
        )
        self.timer = Timer(self.clock, self._fire)
        self._maintenance = Maintenance(
            ledger,
            self.clock,
            self.lease,
            self.pool,
            self._completer,
            [self.local_dispatcher, self.broker_dispatcher],
            self.outage,
            fired_until_ms=lambda: self.timer.fired_until_ms,
            applied=applied,
            prune=prune,
            died=listener.died,
        )
        self.counts: dict[str, int] = {}

    @property
    def alive(self) -> bool:
        """Whether the schedule is kept; if not, the process should be restarted."""
        if not self._hosting:
            return True
        well = self.timer.failure is None and self._dead_thread is None
        return well and self.timer.late_ms <= _STUCK_MS

    @property
    def _parts(self) -> Mapping[str, ServiceThread]:
        """The services that must live, by the name of their thread."""
        return {
            "APScheduler's": self.timer,
            "the local dispatcher's": self.local_dispatcher,
            "the broker dispatcher's": self.broker_dispatcher,
            **self._common_parts,
        }

    @property
    def _common_parts(self) -> Mapping[str, ServiceThread]:
        return {
            "the maintenance's": self._maintenance,
            "the completer's": self._completer,
            "the lease's": self.lease,
        }

    @property
    def _dead_thread(self) -> str | None:
        parts = self._parts
        return next((name for name, part in parts.items() if not part.alive), None)

    @property
    def unready(self) -> str | None:
        """Why it starts no runs now; None if it does."""
        if self._stopping:
            return "draining"
        if not self._hosting:
            return "starting"
        if not self.lease.trusted:
            return "the lease could not be renewed: another node may have taken over"
        return "the ledger cannot be reached" if self.outage.is_open else None

    @property
    def progress(self) -> Callable[..., None]:
        """Takes a run's id and its progress."""
        return self._completer.progress

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """End on SIGTERM and SIGINT; as PID 1 too, which would ignore them."""
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

    def run(self) -> Unfinished | None:
        """Run until SIGTERM or SIGINT; None if everything that ran has ended.

        Within `signals`.

        Raises:
            SchedulerStuck: the timer has stopped.
            SQLAlchemyError: the ledger could not be reached when it began.
        """
        sys.setswitchinterval(_SWITCH_S)
        self._begin()
        self._hosting = True
        number = self._until_signal()
        self._hosting = False
        self._halt()
        return self._drain(number)

    def tick(self) -> Unfinished | None:
        """Run what is due, wait for it, and end; within `signals`."""
        self._join()
        self.local_dispatcher.start()
        self.broker_dispatcher.start()
        self._maintenance.start()
        dispatchers = self.local_dispatcher, self.broker_dispatcher
        while not all(each.idle for each in dispatchers) or self._completer.held:
            with contextlib.suppress(queue.Empty):
                if (number := self._inbox.get(timeout=0.05)) is not None:
                    return self._drain(number)
        self._maintenance.prune()
        return self._drain(None)

    def _begin(self) -> None:
        """Register as a node, and start the services."""
        self._join()
        self.timer.start(self._planned, self.lease.started_ms)
        self._settle()
        self.local_dispatcher.start()
        self.broker_dispatcher.start()
        self._maintenance.start()

    def _halt(self) -> None:
        """Fire nothing more, after a signal."""
        self.timer.stop()

    def _ending(self) -> None:
        """Called when nothing runs any more."""

    def _settle(self) -> None:
        # The app and its schedules stay: looking through them stops every thread for 50 ms.
        gc.collect()
        gc.freeze()

    def _join(self) -> None:
        watermarks = register_tasks(self._ledger, self._known)
        self.lease.join()
        until_ms = self.lease.started_ms
        expected = catch_up(self._planned, watermarks, until_ms, self._ledger.namespace)
        plain = {each.task.name: each.schedule_hash for each in self._planned if not each.jitter_ms}
        backfill(self._ledger, self.lease.id, expected, until_ms, plain)

    def _fire(self, due: list[tuple[Scheduled, int]]) -> None:
        carried = [each for each in due if self.broker_dispatcher.carries(each[0])]
        if carried:
            self.broker_dispatcher.fire(carried)
            due = [each for each in due if not self.broker_dispatcher.carries(each[0])]
        if due:
            self.local_dispatcher.fire(due)
        self._maintenance.expect([*due, *carried])

    def _released(self) -> None:
        self.local_dispatcher.released()
        self.broker_dispatcher.released()

    def _poll_in(self, seconds: float) -> None:
        """Look at the queue when a retry comes due, if that is before the next poll."""
        if seconds < _POLLED_EVERY_S:
            timer = threading.Timer(seconds, self._maintenance.poll)
            timer.daemon = True
            timer.start()

    def _finished(self, run: Run, result: RunResult | None) -> None:
        try:
            self._record(run, result)
        finally:
            self.local_dispatcher.freed()
            if self._stopping:
                self._inbox.put(None)

    def _record(self, run: Run, result: RunResult | None) -> None:
        claimed, again = self._completer.claim_of(run.run_id), False
        if result is not None and result.status == "failed" and run.stop.is_set():
            result = None  # it was cancelled
        if self._maintenance.has_timed_out(run.run_id):
            self._maintenance.returned(run.run_id)
        elif claimed is not None:
            end = outcome_of(run, claimed, result, self.clock)
            if result is None and self._stopping:
                end = self._interrupted(run, end)
            elif result is not None and not result.succeeded and self._took_effect(run, result):
                end = outcome_of(run, claimed, result, self.clock, took_effect=True)
            self._completer.end(end)
            again = end.retry_in_ms is not None
            if end.retry_in_ms is not None:
                self._poll_in(end.retry_in_ms / 1000)
            if result is not None:
                self._notifications.ended(run, result, again=again)
            self._count(end.status)
        if result is None:
            self._listener.cancelled(run)
        else:
            self._listener.finished(run, result, again)

    def _took_effect(self, run: Run, result: RunResult) -> bool:
        """Whether a run that failed here has committed all the same, in another database."""
        if not (result.at_commit or result.attempt > 1):
            return False
        found = self.outage.guard(lambda: self._applied([run.run_id]))
        return bool(found)

    def _interrupted(self, run: Run, end: RunOutcome) -> RunOutcome:
        if run.task.on_crash == "retry":
            return replace(end, status="failed", retry_in_ms=0)
        return replace(
            end,
            status="interrupted",
            error_type="Interrupted",
            error="its process was stopped before it ended",
        )

    def _count(self, status: str) -> None:
        self.counts[status] = self.counts.get(status, 0) + 1

    def _until_signal(self) -> signal.Signals:
        while True:
            self._options.pulse()
            until = time.monotonic() + _PULSE_S
            ahead_s = _wall_ahead_s()
            while (left := until - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    if (number := self._inbox.get(timeout=min(left, _LOOK_S))) is not None:
                        return number
                if abs(_wall_ahead_s() - ahead_s) > _JUMPED_S:
                    ahead_s = _wall_ahead_s()
                    self.timer.wake()  # APScheduler waits by the wall clock
            self.timer.wake()
            self._watch()

    def _watch(self) -> None:
        """Raise what would stop the schedule unnoticed; warn of a skewed clock."""
        if self.timer.failure is not None:
            raise self.timer.failure
        if (dead := self._dead_thread) is not None:
            raise SchedulerStuck(f"{dead} thread has died: the schedule is not kept any more")
        if self.timer.late_ms > _STUCK_MS:
            time.sleep(1)  # after a standstill of the machine it is late; it was woken just now
            if self.timer.late_ms > _STUCK_MS:
                raise SchedulerStuck(f"the timer is {self.timer.late_ms / 1000:.0f} s late")
        skew_s = self.clock.skew_s
        if abs(skew_s) > _SKEW_S and not self._skewed:
            self._listener.warn(
                f"this machine's clock is {abs(skew_s):.1f} s "
                f"{'ahead of' if skew_s > 0 else 'behind'} the database's, which counts"
            )
        self._skewed = abs(skew_s) > _SKEW_S

    _skewed = False

    def _drain(self, number: signal.Signals | None) -> Unfinished | None:
        self._stopping = True
        self.lease.drain()
        self.local_dispatcher.close()
        self.broker_dispatcher.close()
        if number is not None and self.pool.running:
            self._listener.stopping(number.name, self.pool.running, self._options.grace_s)
        again = self._wait(self._options.grace_s)
        left = tuple(self.pool.running)
        if left:
            self.pool.cancel()
            self._wait(_CANCEL_NOW_S if again else _CANCEL_S)
            self._mark(self.pool.running)
        else:
            self.pool.stop()
        self._ending()
        self._maintenance.stop()
        self._completer.close(2.0)
        self._notifications.close(1.0)
        self.lease.leave()
        return Unfinished(again or number or signal.SIGTERM, left) if left else None

    def _mark(self, running: Sequence[Run]) -> None:
        """Record runs whose threads cannot be ended as interrupted: the process ends with them."""
        for run in running:
            claimed = self._completer.claim_of(run.run_id)
            if claimed is not None and not self._maintenance.has_timed_out(run.run_id):
                end = outcome_of(run, claimed, None, self.clock)
                self._completer.end(self._interrupted(run, end))

    def _wait(self, seconds: float) -> signal.Signals | None:
        """Wait until nothing runs, *seconds* at most; a signal that comes meanwhile is returned."""
        until = time.monotonic() + seconds
        while self.pool.running and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                if (number := self._inbox.get(timeout=left)) is not None:
                    return number
        return None


def _wall_ahead_s() -> float:
    """It changes when somebody sets the wall clock."""
    return time.time() - time.monotonic()


def _late_ms(scheduled: Scheduled) -> int:
    """How late its runs may start."""
    within_s = scheduled.task.start_within_s
    window_ms = scheduled.window_ms if within_s is None else round(within_s * 1000)
    return window_ms + scheduled.jitter_ms
