"""The process behind `fsa scheduler start` and `fsa worker start`: start, watch, drain.

What it is made of is in `assembly`, the way of one run through it in `run_lifecycle`.
"""

from __future__ import annotations

import contextlib
import gc
import math
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from fsa_cli.exceptions import SchedulerStuck, Terminated
from fsa_cli.ledger.offload import in_thread
from fsa_cli.ledger.records import RunOutcome
from fsa_cli.processes.claimer import Claimer
from fsa_cli.processes.drain import LEDGER_S, Drain, Unfinished, ledger_problem, unrecorded
from fsa_cli.processes.events import NodeListener, RunCounts
from fsa_cli.processes.maintenance import Maintenance
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.notifications import Notifications
from fsa_cli.processes.run_lifecycle import RunLifecycle
from fsa_cli.processes.service import Service
from fsa_cli.processes.timer import Timer
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.runner.signal_handlers import ENDING, handling

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["Node", "NodeOptions", "NodeParts"]

_PULSE_S = 5.0
_LOOK_S = 0.5
_JUMPED_S = 0.2
# So long a node that begins has to end that at a signal.
_BEGUN_S = 3.0
_STUCK_MS = 5000
_SKEW_S = 1.0
# Python's 5 ms is how long a thread that has its answer waits for one that computes.
_SWITCH_S = 0.001


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """How a node works.

    Attributes:
        grace_s: How long running tasks may go on after SIGTERM or SIGINT.
        pulse: Called every few seconds while all is well.
        lifespan_of: The app whose lifespan runs around all tasks; None: no lifespan runs.
    """

    grace_s: float
    pulse: Callable[[], None] = lambda: None
    lifespan_of: Starlette | None = None


@dataclass(frozen=True)
class NodeParts:
    """The parts of a node.

    Attributes:
        join: Registers the node and its tasks in the ledger, and starts the lease.
        timer: None: it fires no schedule.
        intake: What brings it work, in the order of their start.
    """

    context: NodeContext
    lifecycle: RunLifecycle
    maintenance: Maintenance
    claimers: Sequence[Claimer]
    intake: Sequence[Service]
    counts: RunCounts
    notifications: Notifications
    join: Callable[[], None]
    timer: Timer | None = None


class Node(NodeListener):
    """Runs what is scheduled and what is queued, until a signal comes.

    Its services start in order and stop in reverse: what brings work comes last and goes first.
    """

    def __init__(self, parts: NodeParts, options: NodeOptions) -> None:
        self.context = parts.context
        self.lifecycle = parts.lifecycle
        self._parts = parts
        self._options = options
        self._services: list[Service] = [
            parts.notifications,
            parts.lifecycle.completer,
            parts.maintenance,
            *parts.intake,
            *([parts.timer] if parts.timer is not None else ()),
        ]
        self._started: list[Service] = []
        # A SimpleQueue: a signal handler may put to it while this very thread waits on it.
        self._inbox: queue.SimpleQueue[signal.Signals | None] = queue.SimpleQueue()
        self._hosting = self._skewed = False
        self._drain: Drain | None = None
        parts.context.events.add(self)

    @property
    def counts(self) -> dict[str, int]:
        """How many runs have ended here with each status."""
        return self._parts.counts.by_status

    @property
    def backlog(self) -> int:
        """How many due instants are not claimed yet."""
        return sum(each.backlog for each in self._parts.claimers)

    @property
    def late_ms(self) -> int:
        """How long the next instant is overdue; 0 if its time has not come."""
        return 0 if self._parts.timer is None else self._parts.timer.late_ms

    @property
    def alive(self) -> bool:
        """Whether the schedule is kept; if not, the process should be restarted."""
        if not self._hosting:
            return True
        timer = self._parts.timer
        well = self._dead is None and (timer is None or timer.failure is None)
        return well and self.late_ms <= _STUCK_MS

    @property
    def _dead(self) -> str | None:
        if not self.lifecycle.pool.alive:
            return "event loop"
        return next((each.name for each in self._started if not each.alive), None)

    @property
    def unready(self) -> str | None:
        """Why it starts no runs now; None if it does."""
        if self._drain is not None:
            return "draining"
        if not self._hosting:
            return "starting"
        if not self.context.lease.trusted:
            return "the lease could not be renewed: another node may have taken over"
        return self.context.outage.reason

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """End on SIGTERM, SIGHUP and SIGINT."""
        assert threading.current_thread() is threading.main_thread()

        def note(number: int, frame: FrameType | None) -> None:
            self._inbox.put(signal.Signals(number))

        with handling(note, *ENDING, signal.SIGINT):
            yield

    def run(self) -> Unfinished | None:
        """Run until SIGTERM, SIGHUP or SIGINT; None if everything that ran has ended.

        Within `signals`.

        Raises:
            SchedulerStuck: the timer has stopped.
            SQLAlchemyError: the ledger could not be reached when it began.
        """
        sys.setswitchinterval(_SWITCH_S)
        self.start()
        self._hosting = True
        number = self._until_signal()
        self._hosting = False
        return self.drain(number)

    def tick(self) -> Unfinished | None:
        """Run what is due, wait for it, and end; within `signals`.

        Raises:
            DatabaseUnreachable: Nothing runs any more, and the ledger is away or takes no outcome.
        """
        self.start(reaping=True)
        claimers = self._parts.claimers
        failing_since_s: float | None = None
        while not all(each.idle for each in claimers) or len(self.lifecycle.runs):
            with contextlib.suppress(queue.Empty):
                if (number := self._inbox.get(timeout=0.05)) is not None:
                    return self.drain(number)
            if ledger_problem(self.context, self.lifecycle) is None or self.lifecycle.pool.running:
                failing_since_s = None
                continue
            failing_since_s = failing_since_s or time.monotonic()
            if time.monotonic() - failing_since_s > LEDGER_S:
                failure = unrecorded(self.context, self.lifecycle)
                self.drain(None, grace_s=0.0)
                raise failure
        self._parts.maintenance.prune()
        return self.drain(None)

    def drain(
        self, number: signal.Signals | None, grace_s: float | None = None
    ) -> Unfinished | None:
        """Take no more, wait for what runs, record it, and stop the services.

        Args:
            grace_s: Instead of the node's.

        Raises:
            LifespanFailed: The end of the app's lifespan has raised.
        """
        grace_s = self._options.grace_s if grace_s is None else grace_s
        self._drain = Drain(self.context, self.lifecycle, self._started, self._inbox, grace_s)
        return self._drain.run(number)

    def start(self, *, reaping: bool = False) -> None:
        """Register as a node, and start the services, and then what they have claimed.

        Args:
            reaping: Decide the runs of dead nodes first: it may have ended before it would come to
                that, and their locks would keep what is due waiting for ever.

        Raises:
            Terminated: A signal has come, and the ledger does not answer.
        """
        self._start_lifespan()
        starting = in_thread(lambda: self._start(reaping))
        number, until_s = None, math.inf
        while not futures.wait([starting], _LOOK_S / 5).done:
            with contextlib.suppress(queue.Empty):
                if number is None and (number := self._inbox.get_nowait()) is not None:
                    until_s = time.monotonic() + _BEGUN_S
            if time.monotonic() > until_s:
                assert number is not None
                raise Terminated(
                    f"stopped by {number.name} while it began: the ledger does not answer",
                    details=[self.context.ledger.where],
                )
        starting.result()
        if number is not None:
            self._inbox.put(number)

    def _start(self, reaping: bool) -> None:
        self._parts.join()
        self._started.append(self.context.lease)
        if reaping:
            self._parts.maintenance.reap()
        # The app and its schedules stay: looking through them stops every thread for 50 ms.
        gc.collect()
        gc.freeze()
        try:
            for service in self._services:
                service.start()
                self._started.append(service)
        except BaseException:
            self.lifecycle.give_back(self.lifecycle.pool.close())
            raise
        self.lifecycle.pool.open()

    def _start_lifespan(self) -> None:
        if self._options.lifespan_of is None:
            return
        starting = self.lifecycle.pool.start_lifespan(self._options.lifespan_of)
        while not starting.done():
            with contextlib.suppress(TimeoutError):
                starting.exception(_LOOK_S)
            with contextlib.suppress(queue.Empty):
                if (number := self._inbox.get_nowait()) is not None:
                    raise Terminated(f"stopped by {number.name} while the app's lifespan began")
        starting.result()

    def run_finished(self, run: Run, result: RunResult | None, outcome: RunOutcome | None) -> None:
        if self._drain is not None:
            self._inbox.put(None)

    def _until_signal(self) -> signal.Signals:
        timer = self._parts.timer
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
                    if timer is not None:
                        timer.wake()  # APScheduler waits by the wall clock
            if timer is not None:
                timer.wake()
            self._watch()

    def _watch(self) -> None:
        """Raise what would stop the schedule unnoticed; warn of a skewed clock."""
        timer = self._parts.timer
        if timer is not None and timer.failure is not None:
            raise timer.failure
        if (dead := self._dead) is not None:
            raise SchedulerStuck(f"the {dead} thread has died: the schedule is not kept any more")
        if self.late_ms > _STUCK_MS:
            time.sleep(1)  # after a standstill of the machine it is late; it was woken just now
            if self.late_ms > _STUCK_MS:
                raise SchedulerStuck(f"the timer is {self.late_ms / 1000:.0f} s late")
        skew_s = self.context.clock.skew_s
        if abs(skew_s) > _SKEW_S and not self._skewed:
            self.context.events.warned(
                f"this machine's clock is {abs(skew_s):.1f} s "
                f"{'ahead of' if skew_s > 0 else 'behind'} the database's, which counts"
            )
        self._skewed = abs(skew_s) > _SKEW_S


def _wall_ahead_s() -> float:
    """It changes when somebody sets the wall clock."""
    return time.time() - time.monotonic()
