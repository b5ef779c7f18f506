"""Replicas of `fsa scheduler start` on one database, for tests that kill, stop and cut them off."""

import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import sqlalchemy
from sqlalchemy import URL

from fsa_cli.ledger.store import Ledger
from support.backends import Backend, Row, SQLite
from support.processes import FSA, Process, run, write_files
from support.waiting import wait_until

LEASE_S = 6.0
RECOVERED_WITHIN_S = LEASE_S + 6.0

HEAD = """
import asyncio, contextvars, os, random, sys, threading, time
from fastapi import FastAPI
from sqlalchemy import text
from fastapi_sqlalchemy import DBSessionMiddleware, db
from fsa_cli import TaskContext, task

app = FastAPI()
app.add_middleware(
    DBSessionMiddleware, db_url=os.environ.get("DB_URL", {url!r}), engine_args={engine_args!r}
)
EFFECT = text("INSERT INTO effects (run, attempt, task) VALUES (:run, :attempt, :task)")
STARTS = os.open({starts!r}, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

def note(context):
    # The monotonic clock is the same in all processes, whatever their wall clocks say.
    line = (context.run_id, context.attempt, context.task, os.getpid(), time.monotonic_ns())
    os.write(STARTS, (" ".join(map(str, line)) + chr(10)).encode())

def effect(context):
    return EFFECT, {{"run": context.run_id, "attempt": context.attempt, "task": context.task}}

def write(context):
    db.session.execute(*effect(context))

async def write_async(context):
    await db.async_session.execute(*effect(context))
"""

#: 16 tasks a second, sync and async in turn. On SQLite they write late: a writer holds the file.
LOAD = """
EARLY = {early!r}

def define(name, number, is_async, options, body_s, fails):
    def sync(context: TaskContext):
        note(context)
        if EARLY and number % 3 == 0:
            write(context)
        time.sleep(body_s)
        if not EARLY or number % 3:
            write(context)
        if fails and random.random() < 0.15:
            raise LookupError("now and then")

    async def asynchronous(context: TaskContext):
        note(context)
        if EARLY and number % 3 == 0:
            await write_async(context)
        await asyncio.sleep(body_s)
        if not EARLY or number % 3:
            await write_async(context)
        if fails and random.random() < 0.15:
            raise LookupError("now and then")

    task(name=name, schedule="every 1s", **options)(asynchronous if is_async else sync)

for arguments in {tasks!r}:
    define(*arguments)
"""


@dataclass(frozen=True)
class Scheduled:
    """A task of the app's, as the oracle needs it."""

    name: str
    every_s: int = 1
    on_crash: str = "mark"
    retries: int = 0
    overlap: str = "skip"


@dataclass
class Replica:
    process: Process
    environment: Mapping[str, str | None]
    arguments: Sequence[str]
    command: str = "scheduler"

    @property
    def alive(self) -> bool:
        return self.process.returncode is None


def load(every: int = 16) -> list[tuple[Scheduled, bool, float, bool]]:
    """The tasks of `LOAD`: each with whether it is async, how long it takes, and if it may fail."""
    bodies_s = [0.0, 0.0, 0.02, 0.05, 0.1, 0.1, 0.15, 0.2, 0.2, 0.25, 0.3, 0.3, 0.35, 0.4, 0.4, 0.4]
    tasks = []
    for number in range(every):
        fails = number % 5 == 3
        scheduled = Scheduled(
            f"task_{number:02}",
            on_crash="retry" if number % 4 in (2, 3) else "mark",
            retries=2 if fails else 0,
            overlap=("queue", "allow", "skip", "skip", "skip")[number % 5],
        )
        tasks.append((scheduled, number % 2 == 1, bodies_s[number % len(bodies_s)], fails))
    return tasks


@dataclass
class Replicas:
    """An app in *directory* on *backend*, and the processes that run its tasks.

    `window_ms` begins when the first replica has joined; what the oracle asks is about the instants
    in it. `in_flight` are the runs of replicas that were killed, until they are recovered.
    """

    directory: Path
    backend: Backend
    url: str = ""
    engine_args: Mapping[str, object] | None = None
    lease_s: float = LEASE_S
    environment: Mapping[str, str | None] = field(default_factory=dict)
    queue: str | None = None
    tasks: list[Scheduled] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)
    ended: list[Process] = field(default_factory=list)
    recovered_s: list[float] = field(default_factory=list)
    in_flight: dict[str, tuple[str, float]] = field(default_factory=dict)
    faults: int = 0

    def __post_init__(self) -> None:
        self.url = self.url or self.backend.url
        self._random = random.Random(20261122)
        self._lock = threading.Lock()
        self._observed = threading.Event()
        self._observer = threading.Thread(target=self._observe, daemon=True)
        self._observer.start()

    @property
    def ledger(self) -> Backend:
        """Where the rows of its runs are."""
        if isinstance(self.backend, SQLite):
            path = self.backend.path
            beside = path.with_name(f"{path.stem}-ledger{path.suffix}")
            return SQLite(URL.create("sqlite", database=str(beside)))
        return self.backend

    @property
    def starts(self) -> Path:
        return self.directory / "starts"

    # -- the app -------------------------------------------------------------------------------

    def lay(self, source: str, tasks: Sequence[Scheduled], *, name: str = "main") -> None:
        """Write an app with these tasks beside the `HEAD` that notes starts and writes effects."""
        self.tasks = list(tasks)
        head = dedent(HEAD).format(
            url=self.url, starts=str(self.starts), engine_args=self.engine_args
        )
        write_files(self.directory, {f"{name}.py": head + dedent(source)})
        self.starts.touch()

    def lay_load(self, more: str = "") -> None:
        """Write the app with 16 tasks each second."""
        tasks = load()
        arguments = [
            (
                each.name,
                number,
                is_async,
                {
                    "on_crash": each.on_crash,
                    "overlap": each.overlap,
                    "retries": each.retries,
                    "backoff_s": 0.2,
                    **({"queue": self.queue} if self.queue else {}),
                },
                body_s,
                fails,
            )
            for number, (each, is_async, body_s, fails) in enumerate(tasks)
        ]
        early = not isinstance(self.backend, SQLite)
        source = dedent(LOAD).format(early=early, tasks=arguments)
        self.lay(source + dedent(more), [each for each, *_ in tasks])

    def create_effects(self) -> None:
        self.backend.execute(
            "CREATE TABLE effects (run VARCHAR(36) NOT NULL, attempt INTEGER NOT NULL,"
            " task VARCHAR(100) NOT NULL)"
        )

    def prepare(self) -> None:
        """Make the ledger's tables, and what the executors need."""
        done = run(
            FSA,
            *("scheduler", "init"),
            cwd=self.directory,
            env=self.environment,
        )
        assert done.returncode == 0, done

    # -- the processes -------------------------------------------------------------------------

    def start(
        self,
        *arguments: str,
        command: str = "scheduler",
        environment: Mapping[str, str | None] | None = None,
    ) -> Replica:
        """One more of them; it may still be on its way when this returns."""
        given = {
            "FSA_STATE_DIR": f"state{len(self.replicas)}",
            "FSA_LEASE_S": f"{self.lease_s:g}",
            **self.environment,
            **(environment or {}),
        }
        process = self._process(command, arguments, given)
        replica = Replica(process, given, arguments, command)
        self.replicas.append(replica)
        return replica

    def start_all(self, number: int = 3, *arguments: str) -> None:
        for _ in range(number):
            self.start(*arguments)
        self.wait_up()

    def start_with_workers(self, schedulers: int = 2, workers: int = 3) -> None:
        for command, number in (("scheduler", schedulers), ("worker", workers)):
            for _ in range(number):
                self.start(command=command)
        self.wait_up()

    def up(self, command: str | None = None) -> list[Replica]:
        """Those that have joined; of one command or of all."""
        pids = {pid for (pid,) in self.ledger.rows("SELECT pid FROM fsa_node")}
        return [
            each
            for each in self.replicas
            if each.alive and each.process.pid in pids and command in (None, each.command)
        ]

    def wait_up(self) -> None:
        """Wait until each has joined."""
        for replica in self.replicas:
            replica.process.wait_for(f"fsa {replica.command}")
        wait_until(lambda: len(self.up()) == len(self.replicas), "all have joined")

    def restart(self, replica: Replica) -> None:
        """Start again one that has ended."""
        self.ended.append(replica.process)
        replica.process = self._process(replica.command, replica.arguments, replica.environment)

    def kill(self, replica: Replica, *, restart: bool = True) -> None:
        """`kill -9`; what it was running must be recovered in time."""
        pid = replica.process.pid
        replica.process.kill()
        self.faults += 1
        self.note_in_flight(pid)
        if restart:
            self.restart(replica)

    def note_in_flight(self, pid: int) -> None:
        at_s = time.monotonic()
        running = self.running_of(pid)
        with self._lock:
            self.in_flight.update({run: (claim, at_s) for run, claim in running})

    def kill_one_of(self, command: str | None = None, *, in_flight: bool = False) -> None:
        """Kill any of those that are up, as soon as it is not the only one.

        Args:
            command: Only of those of this command.
            in_flight: One that is running something, and that cannot end it before it is killed.
        """
        wait_until(lambda: len(self.up(command)) > 1, "two replicas are up")
        if in_flight:
            replica = self._stopped_in_flight(command)
        else:
            replica = self._random.choice(self.up(command))
        assert replica is not None, "no replica was running anything"
        self.kill(replica)

    def stand_still(self, replica: Replica, seconds: float) -> None:
        """SIGSTOP, and SIGCONT so much later."""
        replica.process.send(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            replica.process.send(signal.SIGCONT)

    def stand_still_in_flight(self, seconds: float) -> bool:
        """Have a replica stand still while it is running something; whether one was found."""
        replica = self._stopped_in_flight()
        if replica is None:
            return False
        self.note_in_flight(replica.process.pid)
        self.faults += 1
        self.stand_still(replica, seconds)
        return True

    def _stopped_in_flight(self, command: str | None = None) -> Replica | None:
        """A replica that is running something, stopped by SIGSTOP."""
        for _ in range(800):
            replica = self._random.choice(self.up(command))
            replica.process.send(signal.SIGSTOP)
            if self.running_of(replica.process.pid):
                time.sleep(0.1)  # the database still does what it was told before
                if self.running_of(replica.process.pid):
                    return replica
            replica.process.send(signal.SIGCONT)
            time.sleep(0.05)
        return None

    def running_of(self, pid: int) -> list[tuple[str, str]]:
        """The runs that the process has claimed and not ended, and their tokens."""
        return [
            (run, claim)
            for run, claim in self.ledger.rows(
                "SELECT r.id, r.claim FROM fsa_run r JOIN fsa_node n ON n.id = r.node"
                f" WHERE n.pid = {pid} AND r.status = 'running'"
            )
        ]

    def pause(self, least_s: float, most_s: float) -> None:
        """Let some time go by, as much as chance has it."""
        time.sleep(self._random.uniform(least_s, most_s))

    def stop(self) -> list[int]:
        """SIGTERM to all; their exit codes."""
        for each in self.replicas:
            if each.process.returncode is None:
                each.process.send(signal.SIGTERM)
        return [each.process.wait().returncode for each in self.replicas]

    def close(self) -> None:
        self._observed.set()
        self._observer.join(20)
        for each in self.replicas:
            each.process.kill()

    @property
    def said(self) -> str:
        """What all of them have written on stderr."""
        processes = [*self.ended, *(each.process for each in self.replicas)]
        return "\n".join(each.stderr for each in processes)

    # -- the window ----------------------------------------------------------------------------

    def now_ms(self) -> int:
        """This machine's clock, which is the database's."""
        return int(time.time() * 1000)

    def first_ms(self) -> int:
        """When the first scheduler had joined."""
        sql = "SELECT min(started_ms) FROM fsa_node WHERE role = 'scheduler'"
        return int(self.ledger.rows(sql)[0][0])

    def settle(self, *, within_s: float = 60.0) -> int:
        """Let the replicas work in quiet until all up to now has ended; the end of the window."""
        cut_ms = self.now_ms()
        time.sleep(2.5)  # the sweep is a second behind
        deadline_s = time.monotonic() + within_s
        while (left := self._open(cut_ms)) or self.in_flight:
            assert time.monotonic() < deadline_s, (
                f"not ended within {within_s:g} s: {len(left)} runs, the first {left[:5]};"
                f" of dead replicas {list(self.in_flight)[:5]}"
            )
            time.sleep(0.1)
        return cut_ms

    def _open(self, cut_ms: int) -> list[Row]:
        names = ", ".join(f"'{each.name}'" for each in self.tasks)
        return self.ledger.rows(
            "SELECT task, scheduled_ms, status, attempt, node FROM fsa_run WHERE"
            f" scheduled_ms <= {cut_ms} AND task IN ({names})"
            " AND status IN ('queued', 'running', 'handed_off') ORDER BY scheduled_ms"
        )

    def _process(
        self, command: str, arguments: Sequence[str], environment: Mapping[str, str | None]
    ) -> Process:
        return Process(FSA, command, "start", *arguments, cwd=self.directory, env=dict(environment))

    def _observe(self) -> None:
        """See how long the runs of killed replicas stay theirs."""
        while not self._observed.wait(0.2):
            with self._lock:
                waiting = dict(self.in_flight)
            if not waiting:
                continue
            names = ", ".join(f"'{run}'" for run in waiting)
            try:
                rows = self.ledger.rows(
                    f"SELECT id, claim FROM fsa_run WHERE id IN ({names}) AND status = 'running'"
                )
            except Exception:  # the database is away, as the test wants it
                continue
            still = {run for run, claim in rows if waiting[run][0] == claim}
            now_s = time.monotonic()
            with self._lock:
                for run in waiting.keys() - still:
                    del self.in_flight[run]
                    self.recovered_s.append(now_s - waiting[run][1])


@contextmanager
def ledger_of(replicas: Replicas) -> Iterator[Ledger]:
    """Its ledger, as another process has it."""
    engine = sqlalchemy.create_engine(replicas.ledger.url)
    try:
        yield Ledger(engine, replicas.directory.name, "the test's")
    finally:
        engine.dispose()


@contextmanager
def replicas_in(
    directory: Path,
    backend: Backend,
    url: str = "",
    engine_args: Mapping[str, object] | None = None,
) -> Iterator[Replicas]:
    made = Replicas(directory, backend, url, engine_args)
    try:
        made.create_effects()
        yield made
    finally:
        made.close()
