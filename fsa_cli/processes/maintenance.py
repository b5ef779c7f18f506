"""Each second: backfill, dead nodes, cancelled and late runs; now and then pruning."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from fsa_cli.ledger import control, maintenance, nodes
from fsa_cli.ledger.backfill import backfill
from fsa_cli.ledger.maintenance import Died
from fsa_cli.ledger.records import RunOutcome
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes.claimer import Claimer
from fsa_cli.processes.clock import Clock
from fsa_cli.processes.completer import Completer
from fsa_cli.processes.lease import Lease
from fsa_cli.processes.outage import Outage
from fsa_cli.processes.pool import RunPool
from fsa_cli.processes.schedule_plan import Scheduled

__all__ = ["Maintenance"]

_EVERY_S = 1.0
# An instant younger than that may be on its way to its row.
_SWEPT_AFTER_MS = 1000
# Also one that waits for a slot; but it is not claimed for ever (see `claimer._WINDOW_MS`).
_WAITED_FOR_MS = 4000
_RECONCILED_EVERY_S = 5.0
_RECONCILED_AFTER_MS = 10_000
_PRUNED_EVERY_S = 600.0


class Maintenance:
    """A thread that goes on whatever error one of its steps meets.

    Args:
        parts: The claimers of this node.
        fired_until_ms: Every instant up to then was fired by this process.
        applied: Which of these runs have taken effect in a database that is not the ledger's.
        prune: Deletes the marks of runs that the ledger has pruned.
        died: Called when nodes were found dead.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        lease: Lease,
        pool: RunPool,
        completer: Completer,
        parts: Sequence[Claimer],
        outage: Outage,
        *,
        fired_until_ms: Callable[[], int],
        applied: Callable[[Sequence[str]], set[str]],
        prune: Callable[[], None],
        died: Callable[[Died], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lease = lease
        self._pool = pool
        self._completer = completer
        self._parts = parts
        self._outage = outage
        self._fired_until_ms = fired_until_ms
        self._applied = applied
        self._prune = prune
        self._died = died
        self._lock = threading.Lock()
        self._fired: list[tuple[int, Scheduled, int]] = []
        self._timed_out: set[str] = set()
        self._ended = threading.Event()
        self._reconcile_at_s = time.monotonic() + _RECONCILED_EVERY_S
        self._prune_at_s = time.monotonic() + _PRUNED_EVERY_S / 2
        self._thread = threading.Thread(target=self._serve, name="fsa maintenance", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def expect(self, due: Iterable[tuple[Scheduled, int]]) -> None:
        """Backfill these instants, which have come due, a second later."""
        with self._lock:
            self._fired.extend((each.start_ms(instant), each, instant) for each, instant in due)

    def has_timed_out(self, run_id: str) -> bool:
        """Whether the run is recorded as timed out although its thread goes on."""
        return run_id in self._timed_out

    def prune(self) -> None:
        """Prune, for a process that is about to end."""
        self._outage.guard(self._prune_runs)

    def returned(self, run_id: str) -> None:
        """Free the lock of a run that had timed out and has returned."""
        self._timed_out.discard(run_id)
        self._completer.free(run_id)

    def _serve(self) -> None:
        with self._ledger.keeping_a_connection():
            while not self._ended.wait(_EVERY_S):
                self._end_overdue()
                for step in (self._sweep, self._reap, self._cancel, self._now_and_then):
                    if self._outage.guard(step) is None:
                        break

    def poll(self) -> None:
        """Have the claimers look at the queue at once."""
        for part in self._parts:
            part.poll()

    def _sweep(self) -> bool:
        now_ms = self._clock.now_ms
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
            counts = backfill(
                self._ledger,
                self._lease.id,
                [scheduled.expected(instant, namespace) for _, scheduled, instant in chosen],
                cut_ms - jitter_ms,
                {scheduled.task.name: scheduled.schedule_hash for _, scheduled, _ in chosen},
            )
            queued += counts.get("queued", 0)
        swept = {(scheduled.task.name, at_ms) for _, scheduled, at_ms in ripe}
        for part in self._parts:
            part.forget(swept)
        if queued:
            self.poll()

    def _reap(self) -> bool:
        if not self._lease.may_reap:
            return True
        leases = nodes.leases(self._ledger)
        for part in self._parts:
            part.alone = leases.schedulers < 2
        dead = [each for each in leases.expired if each != self._lease.id]
        if dead:
            died = maintenance.reap(
                self._ledger, dead, self._applied(maintenance.running(self._ledger, dead))
            )
            self._died(died)
            if died.queued:
                self.poll()
        return True

    def _cancel(self) -> bool:
        held = self._completer.held
        if held:
            wanted = set(control.cancel_requested(self._ledger, self._lease.id))
            for run in self._pool.running:
                if run.run_id in wanted:
                    self._pool.cancel_run(run)
        return True

    def _end_overdue(self) -> None:
        """Mark sync runs that are past their time-out. Their threads keep the slot and the lock."""
        for run in self._pool.overdue():
            claimed = self._completer.claim_of(run.run_id)
            if run.run_id in self._timed_out or claimed is None:
                continue
            run.stop.set()
            run.statements.end_of_thread()
            if run in self._pool.overdue(by_s=_EVERY_S):
                self._timed_out.add(run.run_id)
                now_ms = self._clock.now_ms
                self._completer.end(
                    RunOutcome(
                        run_id=run.run_id,
                        token=claimed.token,
                        task=run.task.name,
                        status="timed_out",
                        started_ms=now_ms - round((run.timeout_s or 0) * 1000),
                        finished_ms=now_ms,
                        error_type="TimedOut",
                        error=f"{run.task.name} took longer than {run.timeout_s:g} s; its thread "
                        "goes on",
                        keeps_lock=True,
                    )
                )

    def _now_and_then(self) -> bool:
        self._completer.write_progress()
        now_s = time.monotonic()
        if now_s >= self._reconcile_at_s:
            self._reconcile_at_s = now_s + _RECONCILED_EVERY_S
            before_ms = self._clock.now_ms - _RECONCILED_AFTER_MS
            held = self._completer.held
            if maintenance.reconcile(self._ledger, self._lease.id, held, before_ms):
                self.poll()
        if now_s >= self._prune_at_s:
            more = self._prune_runs()
            self._prune_at_s = now_s + (_EVERY_S if more else _PRUNED_EVERY_S)
        return True

    def _prune_runs(self) -> int:
        pruned = maintenance.prune(self._ledger)
        if not pruned:
            self._prune()
        return pruned
