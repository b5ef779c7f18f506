"""Each second: backfill, dead nodes, cancelled and late runs; now and then pruning."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote

from fsa_cli.ledger import control, maintenance, nodes, queries
from fsa_cli.ledger.activity import write_activity
from fsa_cli.ledger.backfill import backfill
from fsa_cli.ledger.progress import write_progress
from fsa_cli.ledger.pruning import Pruning
from fsa_cli.processes.claimer import Claimer
from fsa_cli.processes.node_context import NodeContext
from fsa_cli.processes.run_lifecycle import RunLifecycle
from fsa_cli.processes.schedule_plan import Scheduled
from fsa_cli.processes.service import ServiceThread
from fsa_cli.runner.activity import activity_of
from fsa_cli.runner.outcome import progress_fields
from fsa_cli.terminal.formatting import format_span

__all__ = ["Effects", "Maintenance"]

_EVERY_S = 1.0
# An instant younger than that may be on its way to its row.
_SWEPT_AFTER_MS = 1000
# Also one that waits for a slot; but it is not claimed for ever (see `claimer._WINDOW_MS`).
_WAITED_FOR_MS = 4000
# A lease lasts ten times as long, and an idle process is to cost its database little.
_REAPED_EVERY_S = 1.9
_LEFT_EVERY_S = 9.5
_RECONCILED_EVERY_S = 5.0
_PRUNED_EVERY_S = 600.0
_LOOKED_EVERY_S = 30.0
# For so long a process of another version may be there to take it.
_UNKNOWN_FOR_MS = 10_000
# A run that has taken so long is looked at with each reconciliation.
_LONG_S = 2.0


@dataclass(frozen=True)
class Effects:
    """The marks of runs in databases that are not the ledger's.

    Attributes:
        fence_off: As `reap` takes it.
        prune: Deletes the marks of runs that the ledger has pruned.
    """

    fence_off: Callable[[Mapping[str, str | None]], set[str]]
    prune: Callable[[], None]


class Maintenance(ServiceThread):
    """A thread that goes on whatever error one of its steps meets.

    Args:
        parts: The claimers of this node.
        fired_until_ms: Every instant up to then was fired by this process.
        knows: Whether the app has a task of that name.
        pruning: How long ended runs are kept.
    """

    def __init__(
        self,
        context: NodeContext,
        lifecycle: RunLifecycle,
        parts: Sequence[Claimer],
        effects: Effects,
        fired_until_ms: Callable[[], int],
        knows: Callable[[str], bool],
        pruning: Pruning,
    ) -> None:
        super().__init__("maintenance")
        self._context = context
        self._ledger = context.ledger
        self._lease = context.lease
        self._lifecycle = lifecycle
        self._parts = parts
        self._effects = effects
        self._fired_until_ms = fired_until_ms
        self._knows = knows
        self._pruning = pruning
        self._told: set[str] = set()
        self._behind: set[str] = set()
        self._look_at_s = time.monotonic() + _RECONCILED_EVERY_S
        self._lock = threading.Lock()
        self._fired: list[tuple[int, Scheduled, int]] = []
        self._reconcile_at_s = time.monotonic() + _RECONCILED_EVERY_S
        self._prune_at_s = time.monotonic() + _PRUNED_EVERY_S / 2
        self._reap_at_s = self._left_at_s = self._locks_at_s = 0.0

    def expect(self, due: Iterable[tuple[Scheduled, int]]) -> None:
        """Backfill these instants, which have come due, a second later."""
        with self._lock:
            self._fired.extend((each.start_ms(instant), each, instant) for each, instant in due)

    def note_refused(self, refused: Mapping[tuple[str, int], Exception]) -> None:
        """Report instants whose rows the database refuses. The watermarks of their tasks stay: the
        next process to start finds what has no row."""
        self._behind |= {name for name, _ in refused}
        if refused:
            self._context.outage.note_refusal(self._sweep, next(iter(refused.values())))

    def reap(self) -> None:
        """Reap at once, before it is started."""
        self._context.outage.guard(self._reap)

    def prune(self) -> None:
        """Prune, for a process that is about to end."""
        self._context.outage.guard(self._prune_runs)

    def _serve(self) -> None:
        steps = self._sweep, self._reap, self._cancel, self._write_progress, self._now_and_then
        with self._ledger.keeping_a_connection():
            while not self._stopping.wait(_EVERY_S):
                self._lifecycle.pool.fill()  # what has waited for a thread
                self._lifecycle.end_overdue()
                for step in steps:
                    if not self._context.outage.reached(step):
                        break

    def poll(self) -> None:
        """Have the claimers look at the queue at once."""
        for part in self._parts:
            part.poll()

    def _sweep(self) -> bool:
        now_ms = self._context.clock.now_ms
        since_ms = min(part.waiting_since_ms for part in self._parts)
        waiting_ms = max(since_ms - 1, now_ms - _WAITED_FOR_MS)
        cut_ms = min(now_ms - _SWEPT_AFTER_MS, waiting_ms, self._fired_until_ms())
        with self._lock:
            ripe = [each for each in self._fired if each[0] <= cut_ms]
            self._fired = [each for each in self._fired if each[0] > cut_ms]
        if not ripe:
            return True
        try:
            self._fill(ripe, cut_ms)
        except BaseException:
            with self._lock:
                self._fired.extend(ripe)
            raise
        return True

    def _fill(self, ripe: Sequence[tuple[int, Scheduled, int]], cut_ms: int) -> None:
        # With jitter, instants up to so much before have not started yet.
        jitters = {scheduled.jitter_ms for _, scheduled, _ in ripe}
        namespace = self._ledger.namespace
        queued = 0
        for jitter_ms in jitters:
            chosen = [each for each in ripe if each[1].jitter_ms == jitter_ms]
            refused: dict[tuple[str, int], Exception] = {}
            hashes = {scheduled.task.name: scheduled.schedule_hash for _, scheduled, _ in chosen}
            counts = backfill(
                self._ledger,
                self._lease.id,
                [scheduled.expected(instant, namespace) for _, scheduled, instant in chosen],
                cut_ms - jitter_ms,
                {name: it for name, it in hashes.items() if name not in self._behind},
                refused,
            )
            self.note_refused(refused)
            queued += counts.get("queued", 0)
        swept = {(scheduled.task.name, at_ms) for _, scheduled, at_ms in ripe}
        for part in self._parts:
            part.forget(swept)
        if queued:
            self.poll()

    def _reap(self) -> bool:
        now_s = time.monotonic()
        if not self._lease.may_reap or now_s < self._reap_at_s:
            return True
        self._reap_at_s = now_s + _REAPED_EVERY_S
        leases = nodes.leases(self._ledger)
        for part in self._parts:
            part.alone = leases.schedulers < 2
        dead = [each for each in leases.expired if each != self._lease.id]
        if not dead and now_s < self._left_at_s:
            return True
        self._left_at_s = now_s + _LEFT_EVERY_S
        left = maintenance.left_running(self._ledger, dead)
        if dead or left:
            died = maintenance.reap(self._ledger, dead, self._effects.fence_off, left=left)
            self._context.events.node_died(died)
            if died.refused is not None:
                self._context.outage.note_refusal(self._reap, died.refused)
            if died.queued:
                self.poll()
        return True

    def _cancel(self) -> bool:
        if len(self._lifecycle.runs):
            wanted = set(control.cancel_requested(self._ledger, self._lease.id))
            if wanted:
                self._lifecycle.cancel(wanted)
        return True

    def _write_progress(self) -> bool:
        noted = {}
        for active in self._lifecycle.runs:
            told, active.progress = active.progress, None
            if told is not None:
                noted[active.claim.run_id] = progress_fields(told)
        if noted:
            write_progress(self._ledger, noted)
        return True

    def _now_and_then(self) -> bool:
        now_s = time.monotonic()
        if now_s >= self._reconcile_at_s:
            self._reconcile_at_s = now_s + _RECONCILED_EVERY_S
            if maintenance.reconcile(self._ledger, self._lease.id, self._lifecycle.runs.holds):
                self.poll()
            if now_s >= self._locks_at_s:
                self._locks_at_s = now_s + _LEFT_EVERY_S
                maintenance.free_left_locks(self._ledger)
            self._write_activity(now_s)
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + _LOOKED_EVERY_S
            self._tell_of_unknown()
        if now_s >= self._prune_at_s:
            more = self._prune_runs()
            self._prune_at_s = now_s + (_EVERY_S if more else _PRUNED_EVERY_S)
        return True

    def _tell_of_unknown(self) -> None:
        """Say once of each task that its runs wait, and the app has none of that name."""
        waiting = queries.waiting_runs(self._ledger)
        now_ms = self._context.clock.now_ms
        for each in waiting:
            late_ms = now_ms - each.since_ms
            if each.task in self._told or self._knows(each.task) or late_ms < _UNKNOWN_FOR_MS:
                continue
            self._told.add(each.task)
            span = format_span(late_ms)
            runs = "1 run" if each.number == 1 else f"{each.number} runs"
            self._context.events.warned(
                f"{runs} of {each.task} for {span}: this app has no such task (renamed? "
                f"an old version?): fsa runs {quote(each.task)} --status {each.status}"
            )

    def _write_activity(self, now_s: float) -> None:
        """Write what the runs that go on for long do, where that has changed."""
        told = {}
        for active in self._lifecycle.pool.active:
            since_s, run = active.started_s, active.run
            if run is None or since_s is None or now_s - since_s < _LONG_S:
                continue
            seen = activity_of(run)
            if seen != active.activity:
                active.activity = seen
                told[active.claim.run_id] = seen.place, seen.sessions
        if told:
            write_activity(self._ledger, told)

    def _prune_runs(self) -> int:
        pruned = self._pruning.prune(self._ledger)
        if not pruned:
            self._effects.prune()
        return pruned
