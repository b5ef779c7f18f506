"""What must hold after any fault: each instant has one row, and the effects agree with the rows."""

import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from support.backends import PostgreSQL
from support.replicas import RECOVERED_WITHIN_S, Replicas, Scheduled

FINAL = {"succeeded", "failed", "timed_out", "interrupted", "missed", "skipped", "cancelled"}
#: How far ahead of the database's clock an instant may be claimed.
EARLY_MS = 500

_OF_POOL = "Exception during reset or similar"
_OF_SCOPE = ": ROLLBACK failed; its connection is discarded"
_A_RUN = re.compile(r"\d{4}-\d\d-\d\dT")


@dataclass(frozen=True)
class Start:
    """What a task has noted outside the database when it began."""

    run: str
    attempt: int
    task: str
    pid: int
    at_ms: float


@dataclass
class Verdict:
    """What the oracle found.

    Attributes:
        statuses: How many runs ended how.
        late_ms: How long after its instant each run started, sorted.
    """

    instants: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    late_ms: list[float] = field(default_factory=list)
    recovered_s: list[float] = field(default_factory=list)
    faults: int = 0
    commits: int = 0
    violations: list[str] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        if not self.late_ms:
            return float("nan")
        return self.late_ms[min(int(len(self.late_ms) * share), len(self.late_ms) - 1)]

    def assert_kept(self) -> None:
        """AssertionError with the first violations, if there are any."""
        shown = "\n".join(self.violations[:20])
        assert not self.violations, f"{len(self.violations)} violations, the first:\n{shown}"


def starts_of(replicas: Replicas) -> list[Start]:
    ahead_ms = (time.time() - time.monotonic()) * 1000
    found = []
    for line in replicas.starts.read_text().splitlines():
        run, attempt, task, pid, at_ns = line.split()
        found.append(Start(run, int(attempt), task, int(pid), int(at_ns) / 1e6 + ahead_ms))
    return found


def judge(
    replicas: Replicas,
    cut_ms: int,
    *,
    first_ms: int | None = None,
    twice: tuple[str, ...] = (),
) -> Verdict:
    """Ask the database, the effects and the starts about all instants up to *cut_ms*.

    Args:
        first_ms: None: when the first replica had joined.
        twice: Tasks whose runs may have begun twice, although they are marked.
    """
    verdict = Verdict(faults=replicas.faults, recovered_s=sorted(replicas.recovered_s))
    wrong = verdict.violations.append
    tasks = {each.name: each for each in replicas.tasks}
    first_ms = replicas.first_ms() if first_ms is None else first_ms
    names = ("id", "task", "at", "slot", "kind", "status", "attempt", "commits")
    runs = {
        row[0]: dict(zip(names, row, strict=True))
        for row in replicas.ledger.rows(
            "SELECT id, task, scheduled_ms, slot, kind, status, attempt, commits FROM fsa_run"
        )
    }
    by_instant: dict[tuple[str, int], list[str]] = defaultdict(list)
    for run, row in runs.items():
        if row["slot"] == "S":
            by_instant[row["task"], row["at"]].append(run)
    for scheduled in tasks.values():
        for at in instants(scheduled, first_ms, cut_ms):
            verdict.instants += 1
            found = by_instant.get((scheduled.name, at), [])
            if len(found) != 1:
                wrong(f"{scheduled.name} at {at}: {len(found)} rows")
            for run in found:
                status = runs[run]["status"]
                verdict.statuses[status] += 1
                if status not in FINAL:
                    wrong(f"{scheduled.name} at {at}: run {run} is {status}")

    written = Counter(run for (run,) in replicas.backend.rows("SELECT run FROM effects"))
    for run, number in written.items():
        of = runs.get(run)
        if of is None:
            wrong(f"run {run} has taken effect, and is unknown")
        elif of["status"] != "succeeded":
            wrong(f"{of['task']} at {of['at']}: run {run} is {of['status']}, with an effect")
        if number > 1:
            wrong(f"run {run} has taken effect {number} times")
    for run, row in runs.items():
        if row["status"] == "succeeded" and row["task"] in tasks and run not in written:
            wrong(f"{row['task']} at {row['at']}: run {run} succeeded, without an effect")

    _judge_starts(replicas, verdict, tasks, runs, cut_ms, twice)
    for seconds in verdict.recovered_s:
        if seconds > RECOVERED_WITHIN_S:
            wrong(f"a run of a dead replica was left for {seconds:.1f} s")
    for run in replicas.in_flight:
        wrong(f"run {run} of a dead replica was not recovered")
    said = replicas.said.splitlines()
    of_pool = False
    for number, line in enumerate(said):
        # SQLAlchemy's pool and a scope log a rollback that met a connection which had been cut.
        begins = line == _OF_POOL or line.endswith(_OF_SCOPE)
        of_pool = begins or (of_pool and not _A_RUN.match(line))
        if line.startswith("Traceback") and not of_pool:
            told = "\n".join(said[max(number - 2, 0) : number + 60])
            wrong(f"a replica said: {told}")
    return verdict


def _judge_starts(
    replicas: Replicas,
    verdict: Verdict,
    tasks: dict[str, Scheduled],
    runs: dict[str, dict[str, object]],
    cut_ms: int,
    twice: tuple[str, ...],
) -> None:
    wrong = verdict.violations.append
    begun: Counter[tuple[str, int]] = Counter()
    begun_runs: Counter[str] = Counter()
    for start in starts_of(replicas):
        row = runs.get(start.run)
        scheduled = tasks.get(start.task)
        if row is None or scheduled is None:
            if scheduled is not None:
                wrong(f"{start.task}: run {start.run} began, and is unknown")
            continue
        at = row["at"]
        assert isinstance(at, int)
        begun[start.run, start.attempt] += 1
        begun_runs[start.run] += 1
        late_ms = start.at_ms - at
        if late_ms < -EARLY_MS:
            wrong(f"{start.task} at {at}: began {-late_ms:.0f} ms early")
        first = start.attempt == 1 and begun_runs[start.run] == 1 and at <= cut_ms
        if first and row["kind"] == "schedule" and scheduled.overlap != "queue":
            verdict.late_ms.append(late_ms)
        if scheduled.on_crash == "mark" and start.task not in twice:
            if begun[start.run, start.attempt] == 2:
                wrong(f"{start.task} at {at}: attempt {start.attempt} began twice")
            if scheduled.retries == 0 and begun_runs[start.run] == 2:
                wrong(f"{start.task} at {at}: began twice, and is at most once")
    verdict.late_ms.sort()


def instants(scheduled: Scheduled, first_ms: int, cut_ms: int) -> range:
    """Those after *first_ms*, up to *cut_ms*."""
    every_ms = scheduled.every_s * 1000
    return range((first_ms // every_ms + 1) * every_ms, cut_ms + 1, every_ms)


def without_row(replicas: Replicas, scheduled: Scheduled, first_ms: int, cut_ms: int) -> list[int]:
    """The instants between the two that have not one row."""
    rows = Counter(
        at
        for (at,) in replicas.ledger.rows(
            f"SELECT scheduled_ms FROM fsa_run WHERE task = '{scheduled.name}' AND slot = 'S'"
        )
    )
    return [at for at in instants(scheduled, first_ms, cut_ms) if rows[at] != 1]


def assert_nothing_left(replicas: Replicas, *, over_s: float = 5.0) -> None:
    """No connection of the running replicas has been idle in a transaction for a while."""
    if not isinstance(replicas.backend, PostgreSQL):
        return
    left = replicas.backend.rows(
        "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database()"
        " AND state LIKE 'idle in transaction%'"
        f" AND state_change < clock_timestamp() - interval '{over_s} seconds'"
    )
    assert not left, f"idle in a transaction: {left}"
