"""The log of a node: one line for each run, on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from fsa_cli.ledger.maintenance import Died
from fsa_cli.ledger.records import PUT_OFF, RunOutcome, status_words
from fsa_cli.ledger.time import instant_of
from fsa_cli.processes.events import NodeListener
from fsa_cli.project.loader import LoadedApp
from fsa_cli.runner import report
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.outcomes import Discard, Retry
from fsa_cli.terminal.escaping import escape_json_controls, one_line
from fsa_cli.terminal.formatting import format_duration, format_elapsed, format_time
from fsa_cli.terminal.json_values import dumps, jsonable_within
from fsa_cli.terminal.masking import mask_within
from fsa_cli.terminal.output import Output, shown
from fsa_cli.terminal.user_code import error_message, summarize_error, unwrap_error, user_frame

__all__ = ["RunLog", "running_for"]

_SHOWN = 60
_ID_WIDTH = 8
_LOOKED_AT = 1000
_LATE_S = 1.0
_STATUS_WIDTH = len("timed out")
_STYLES = {
    "failed": "red",
    "timed out": "red",
    "cancelled": "yellow",
    "discarded": "yellow",
    "put off": "yellow",
    "skipped": "yellow",
    "missed": "yellow",
}


@dataclass(frozen=True)
class RunLog(NodeListener):
    """Writes a line for each event of a node.

    Args:
        width: Of the longest task's name.
        json: One JSON object a line, for a log collector.
    """

    output: Output
    loaded: LoadedApp
    width: int
    json: bool = False

    def run_finished(self, run: Run, result: RunResult | None, outcome: RunOutcome | None) -> None:
        if result is None:
            self._event(run.run_id, run.task.name, run.scheduled_at, "cancelled", "rolled back")
            return
        again = outcome is not None and outcome.retry_in_ms is not None
        how = outcome.of_attempt if outcome is not None and again else result.status
        if self.json:
            document = report.document(replace(result, value=jsonable_within(result.value)))
            self._json({"event": "run", "retried": again, **document, "status": how})
            return
        status = status_words(how)
        if self._is_silent(status):
            return
        told = [f"{format_elapsed(result.duration_ms):>8}", self._outcome(result)]
        if run.scheduled_at is not None:
            late_s = (result.started_at - run.scheduled_at).total_seconds()
            if late_s > _LATE_S:
                told.append(f"(started {late_s:.1f} s late)")
        if again:
            attempt = "" if how == PUT_OFF else f"attempt {result.attempt}; "
            told.append(f"({attempt}it will be executed again)")
        text = "  ".join(t for t in told if t)
        self._line(run.run_id, run.scheduled_at, run.task.name, status, text)

    def run_not_started(
        self, task: str, instant_ms: int, status: str, reason: str, run_id: str | None = None
    ) -> None:
        instant: datetime | None = None
        with contextlib.suppress(ValueError, OverflowError, OSError):  # a row may say anything
            instant = instant_of(instant_ms)
        self._event(run_id, task, instant, status, reason)

    def node_died(self, died: Died) -> None:
        told = [
            f"{len(runs)} {word}"
            for runs, word in (
                (died.marked, "interrupted"),
                (died.queued, "queued again"),
                (died.succeeded, "succeeded after all"),
            )
            if runs
        ]
        for node in died.nodes:
            text = f"node {node[:8]} has died: {', '.join(told) or 'it was running nothing'}"
            self._say("node_died", text, node=node)

    def runs_lost(self, run_ids: set[str]) -> None:
        for run_id in sorted(run_ids):
            text = f"run {run_id} was no longer this node's when it ended: its end does not count"
            self._say("run_lost", text, run_id=run_id)

    def warned(self, text: str) -> None:
        self._say("warning", text)

    def say(self, event: str, text: str, **more: object) -> None:
        """Write *text* for a person, or an event for a log collector."""
        if self.json:
            self._json({"event": event, "at": datetime.now(UTC), "message": text, **more})
        else:
            self.output.say(text)

    def node_stopping(self, signal_name: str, running: Sequence[Run], grace_s: float) -> None:
        if signal_name == "SIGINT" and not self.json:
            self.output.leave_line()
        if not running:
            return
        names = ", ".join(running_for(run) for run in running)
        text = f"{signal_name}: waiting up to {grace_s:g} s for {names}"
        self.say("stopping", text, grace_s=grace_s)

    def _say(self, event: str, text: str, **more: object) -> None:
        if self.json:
            self.say(event, text, **more)
        else:
            self.output.warn(text)

    def _outcome(self, result: RunResult) -> str:
        if result.error is None:
            return (
                ""
                if result.value is None
                else _cut(report.format_result(jsonable_within(result.value, _LOOKED_AT)))
            )
        gone = self.loaded.unreachable(result.error)
        if gone is not None:
            return gone.message
        leaf = unwrap_error(result.error)
        if isinstance(leaf, Discard | Retry) and not result.at_commit:
            return error_message(leaf)
        where = user_frame(leaf)
        at_commit = "at COMMIT: " if result.at_commit else ""
        return f"{at_commit}{summarize_error(leaf)}{f' ({where.lines()[0]})' if where else ''}"

    def _event(
        self, run_id: str | None, name: str, instant: datetime | None, status: str, reason: str
    ) -> None:
        if self.json:
            self._json(
                {
                    "event": "run",
                    "run_id": run_id,
                    "task": name,
                    "status": status,
                    "scheduled_at": instant,
                    "reason": reason,
                }
            )
        else:
            self._line(run_id, instant, name, status, reason)

    def _is_silent(self, status: str) -> bool:
        return self.output.quiet and _STYLES.get(status) != "red"

    def _line(
        self, run_id: str | None, instant: datetime | None, name: str, status: str, text: str
    ) -> None:
        if self._is_silent(status):
            return
        stamp = (instant or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
        short = (run_id or "")[:_ID_WIDTH]
        parts = f"{short:<{_ID_WIDTH}}", f"{name:<{self.width}}", f"{status:<{_STATUS_WIDTH}}"
        line = one_line("  ".join((stamp, *parts, text))).rstrip()
        if self.output.narration.is_terminal:
            self.output.narration.print(
                shown(line), style=_STYLES.get(status), markup=False, emoji=False, soft_wrap=True
            )
        else:
            self._write(shown(line))

    def _json(self, document: dict[str, object]) -> None:
        self._write(escape_json_controls(dumps(document)))

    def _write(self, line: str) -> None:
        # One write for the line and its end: several threads write, and lines must not mix.
        text = f"{line}\n"
        # Celery's worker puts something in its place that has no encoding.
        encoding = getattr(sys.stderr, "encoding", None) or "ascii"
        # Its reader has gone, the disk is full, the app has closed it or put None in its place.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text.encode(encoding, "backslashreplace").decode(encoding))


def running_for(run: Run) -> str:
    """The name of a run that goes on, and for how long it does."""
    since, now = run.scheduled_at, datetime.now(UTC)
    if since is None:
        return run.task.name
    return f"{run.task.name} (since {format_time(since, now)}, {format_duration(now - since)})"


def _cut(text: str) -> str:
    return mask_within(" ".join(text.split()), _SHOWN)
