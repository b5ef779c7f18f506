"""How a node ends: what runs is waited for, recorded, and the services stop, in bounded time."""

from __future__ import annotations

import contextlib
import queue
import signal
import time
from collections.abc import Sequence
from concurrent import futures
from dataclasses import dataclass

from fsa_cli.exceptions import DatabaseUnreachable, LifespanFailed
from fsa_cli.ledger.offload import in_thread
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.run_lifecycle import RunLifecycle
from fsa_cli.processes.service import Service
from fsa_cli.runner.run import Run

__all__ = ["LEDGER_S", "Drain", "Unfinished", "ledger_problem", "unrecorded"]

#: How long the ledger is waited for when nothing else is left.
LEDGER_S = 10.0

# A cancelled task has this long for its rollback: Kubernetes kills 30 s after SIGTERM, grace is 25.
_CANCEL_S = 3.0
_CANCEL_NOW_S = 0.5
_LOOK_S = 0.1
_TOLD_S = 0.005
_NAMED = 3


@dataclass(frozen=True)
class Unfinished:
    """What was left when the node gave up waiting.

    Attributes:
        runs: Those that had not ended.
        unrecorded: The ledger has not taken how the others have ended, or does not answer.
    """

    signal: signal.Signals
    runs: tuple[Run, ...]
    unrecorded: DatabaseUnreachable | None = None


class Drain:
    """The end of a node.

    Args:
        started: Its services, in the order of their start.
        inbox: Signals that come meanwhile, and None for each run that ends.
        grace_s: How long running tasks may go on.
    """

    def __init__(
        self,
        context: NodeContext,
        lifecycle: RunLifecycle,
        started: Sequence[Service],
        inbox: queue.SimpleQueue[signal.Signals | None],
        grace_s: float,
    ) -> None:
        self._context = context
        self._lifecycle = lifecycle
        self._started = started
        self._inbox = inbox
        self._grace_s = grace_s
        self._recording = False

    def run(self, number: signal.Signals | None) -> Unfinished | None:
        """End the node; None if everything has ended, and the ledger knows how.

        It takes the grace and a few seconds at most: where the ledger does not answer, the threads
        that wait for it are left behind.

        Raises:
            LifespanFailed: The end of the app's lifespan has raised.
        """
        began_s = time.monotonic()
        ended = in_thread(lambda: self._run(number, began_s + self._grace_s))
        running = self._lifecycle.pool.running
        until_s = began_s + self._grace_s + _CANCEL_S + LEDGER_S
        while not futures.wait([ended], _LOOK_S).done and time.monotonic() < until_s:
            running = self._lifecycle.pool.running
            if not running and not len(self._lifecycle.runs):
                until_s = min(until_s, time.monotonic() + LEDGER_S)
            if self._recording and self._signalled():
                until_s = min(until_s, time.monotonic() + _CANCEL_S)
        if ended.done():
            return ended.result()
        return Unfinished(
            number or signal.SIGTERM, tuple(running), unrecorded(self._context, self._lifecycle)
        )

    def _run(self, number: signal.Signals | None, until_s: float) -> Unfinished | None:
        """As `run`, for as long as it takes.

        Twice from the last service to the first: `quiesce` before what runs is waited for, `stop`
        after it.
        """
        lifecycle, pool = self._lifecycle, self._lifecycle.pool
        lifecycle.drain()
        for service in reversed(self._started):
            service.quiesce()
        if waiting := pool.close():
            lifecycle.give_back(waiting)
        if number is not None:
            self._context.events.node_stopping(number.name, pool.running, self._grace_s)
        again = self._wait(until_s - time.monotonic())
        left = tuple(pool.running)
        if left:
            pool.cancel()
            self._wait(_CANCEL_NOW_S if again else _CANCEL_S)
            lifecycle.mark_interrupted()
        self._recording = True
        failure: LifespanFailed | None = None
        if not pool.running:
            try:
                pool.stop(self._grace_s)
            except LifespanFailed as exc:
                failure = exc
        # The database may be back before the grace is over, and take how they have ended.
        while not left and self._is_untold() and time.monotonic() < until_s:
            time.sleep(_TOLD_S)
        for service in reversed(self._started):
            service.stop()
        if failure is not None:
            raise failure
        lost = unrecorded(self._context, lifecycle) if len(lifecycle.runs) else None
        if not left and lost is None:
            return None
        return Unfinished(again or number or signal.SIGTERM, left, lost)

    def _is_untold(self) -> bool:
        """Whether a run has ended that the ledger has neither taken nor refused."""
        return any(each.unrecorded is None for each in self._lifecycle.runs)

    def _signalled(self) -> bool:
        with contextlib.suppress(queue.Empty):
            return self._inbox.get_nowait() is not None
        return False

    def _wait(self, seconds: float) -> signal.Signals | None:
        """Wait until nothing runs, *seconds* at most; a signal that comes meanwhile is returned."""
        until = time.monotonic() + seconds
        while self._lifecycle.pool.running and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                if (number := self._inbox.get(timeout=left)) is not None:
                    return number
        return None


def ledger_problem(context: NodeContext, lifecycle: RunLifecycle) -> str | None:
    """Why the ledger takes nothing, or not all outcomes; None if it does."""
    refused = [each.unrecorded for each in lifecycle.runs if each.unrecorded]
    return context.outage.reason or next(iter(refused), None)


def unrecorded(context: NodeContext, lifecycle: RunLifecycle) -> DatabaseUnreachable:
    """The error that names the runs whose end the ledger has not taken."""
    runs = [f"{each.claim.run_id} of {each.claim.task}" for each in lifecycle.runs]
    left = f"the end of {len(runs)} run{'' if len(runs) == 1 else 's'}"
    return DatabaseUnreachable(
        f"the ledger does not take {left if runs else 'anything'}: "
        f"{ledger_problem(context, lifecycle) or 'it does not answer'}",
        details=[context.ledger.where, *(f"run {run}" for run in runs[:_NAMED])],
        hint="their rows say `running`, and become `interrupted` once this node is known to be gone"
        if runs
        else None,
    )
