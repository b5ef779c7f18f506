"""What happens in a node, and those who hear of it: log, metrics, pings, acknowledgements."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from fsa_cli.ledger.maintenance import Died
from fsa_cli.ledger.records import RunOutcome
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.terminal.user_code import is_from_outside, traceback_text

__all__ = ["NodeEvents", "NodeListener", "RunCounts"]

logger = logging.getLogger("fsa.scheduler")


class NodeListener:
    """Hears what happens; called from several threads. What it raises is logged."""

    def run_started(self, run: Run) -> None: ...

    def run_finished(self, run: Run, result: RunResult | None, outcome: RunOutcome | None) -> None:
        """A run has ended and its slot is free.

        Args:
            result: None: it was cancelled.
            outcome: What the ledger will keep; None: it had ended before, as timed out.
        """

    def run_not_started(
        self, task: str, instant_ms: int, status: str, reason: str, run_id: str | None = None
    ) -> None:
        """A run will not start; *status* is what the ledger will keep of it.

        Args:
            run_id: None where nothing but its instant is known.
        """

    def outcomes_written(self) -> None:
        """The locks of runs that have ended are free."""

    def runs_lost(self, run_ids: set[str]) -> None:
        """Runs were no longer this node's when they ended."""

    def node_died(self, died: Died) -> None: ...

    def node_stopping(self, signal_name: str, running: Sequence[Run], grace_s: float) -> None: ...

    def warned(self, text: str) -> None:
        """A line for a person."""


class NodeEvents(NodeListener):
    """Passes each event on to every listener that has a method of its own for it, in order."""

    def __init__(self, *listeners: NodeListener) -> None:
        self._listeners: dict[str, list[NodeListener]] = {}
        for listener in listeners:
            self.add(listener)

    def add(self, listener: NodeListener) -> None:
        for event, silent in vars(NodeListener).items():
            if not event.startswith("_") and getattr(type(listener), event) is not silent:
                self._listeners.setdefault(event, []).append(listener)

    def run_started(self, run: Run) -> None:
        self._tell("run_started", run)

    def run_finished(self, run: Run, result: RunResult | None, outcome: RunOutcome | None) -> None:
        self._tell("run_finished", run, result, outcome)

    def run_not_started(
        self, task: str, instant_ms: int, status: str, reason: str, run_id: str | None = None
    ) -> None:
        self._tell("run_not_started", task, instant_ms, status, reason, run_id)

    def outcomes_written(self) -> None:
        self._tell("outcomes_written")

    def runs_lost(self, run_ids: set[str]) -> None:
        self._tell("runs_lost", run_ids)

    def node_died(self, died: Died) -> None:
        self._tell("node_died", died)

    def node_stopping(self, signal_name: str, running: Sequence[Run], grace_s: float) -> None:
        self._tell("node_stopping", signal_name, running, grace_s)

    def warned(self, text: str) -> None:
        self._tell("warned", text)

    def _tell(self, event: str, *values: object) -> None:
        for listener in self._listeners.get(event, ()):
            try:
                getattr(listener, event)(*values)
            except BaseException as exc:  # of a task's error or result, when it is looked at
                if is_from_outside(exc):
                    raise
                logger.error("%s could not be passed on\n%s", event, traceback_text(exc))


class RunCounts(NodeListener):
    """How many runs have ended with each status; `put_off`: those whose task raised `Retry`."""

    def __init__(self) -> None:
        self.by_status: dict[str, int] = {}
        self._lock = threading.Lock()

    def run_finished(self, run: Run, result: RunResult | None, outcome: RunOutcome | None) -> None:
        if outcome is not None:
            self._count(outcome.of_attempt)

    def run_not_started(
        self, task: str, instant_ms: int, status: str, reason: str, run_id: str | None = None
    ) -> None:
        self._count(status)

    def _count(self, status: str) -> None:
        with self._lock:
            self.by_status[status] = self.by_status.get(status, 0) + 1
