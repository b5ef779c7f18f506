"""What a run costs that is asked for, or that an engine carries, beside the engines' own tasks."""

import argparse
import importlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import psycopg
import redis
from sqlalchemy import Engine, create_engine, text

from fastapi_sqlalchemy import db
from fsa_cli.ledger.claim_due import claim_due
from fsa_cli.ledger.location import ledger_of
from fsa_cli.ledger.records import Due
from fsa_cli.project.settings import read
from fsa_cli.runs.enqueue import Enqueuer
from fsa_cli.runs.executor import Message

APPS = Path(__file__).parent / "apps"
SCRIPTS = Path(sysconfig.get_path("scripts"))
WORKERS, CONCURRENCY = 2, 10
AT_ONCE = 500
WITHIN_S = 300
WARMED_BY = 200
LEDGER = "fsa_run, fsa_task, fsa_node, fsa_node_task, fsa_progress"


class Contestant(Protocol):
    """One way for tasks to be carried; each has two workers."""

    title: str

    def argv(self) -> list[str]: ...
    def environ(self) -> Mapping[str, str]: ...
    def reset(self) -> None:
        """Forget every task and every result."""

    def up(self) -> int:
        """How many workers are ready."""

    def send(self, count: int) -> None:
        """Have so many empty tasks run."""

    def send_one(self) -> None:
        """Have the one run that tells when it begins."""

    def ended(self) -> int:
        """How many have ended since `reset`, as far as this one ever records it."""


class Place:
    """The servers that all of them share."""

    def __init__(self, postgresql: str, redis_url: str) -> None:
        self.url, self.redis_url = postgresql, redis_url
        self.engine: Engine = create_engine(postgresql, isolation_level="AUTOCOMMIT")
        self.redis = redis.Redis.from_url(redis_url)

    def execute(self, sql: str) -> None:
        with self.engine.connect() as connection:
            connection.exec_driver_sql(sql)

    def number(self, sql: str) -> int:
        with self.engine.connect() as connection:
            return int(connection.scalar(text(sql)) or 0)

    def numbers(self, sql: str) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.scalars(text(sql)))


class Ours:
    """Runs that the scheduler claims and an engine carries to `fsa worker start`.

    With the engine `local` they are asked for, and wait in the ledger for the workers.
    """

    def __init__(self, place: Place, engine: str) -> None:
        self.title, self.engine = "ours" if engine == "local" else f"ours over {engine}", engine
        self._place = place
        self._before_ms = int(time.time() * 1000)
        self._app = importlib.import_module("engine_ours")
        db.configure(place.url)
        settings = read(directory=APPS)
        self._enqueuer = Enqueuer(ledger_of({"default": db}, settings), settings)
        self._enqueuer.ledger.create()
        self._executor = self._enqueuer.executors.named(engine)
        self._enqueuer.executors.named("procrastinate").prepare()  # `reset` empties its tables

    def argv(self) -> list[str]:
        options = ["--executor", self.engine, "--concurrency", str(CONCURRENCY)]
        return ["fsa", "-q", "--app", "engine_ours:app", "worker", "start", *options]

    def environ(self) -> Mapping[str, str]:
        return {}

    def reset(self) -> None:
        self._place.execute(f"TRUNCATE {LEDGER}")
        self._place.execute("TRUNCATE procrastinate_jobs, procrastinate_workers CASCADE")
        self._place.redis.flushdb()

    def up(self) -> int:
        return self._place.number("SELECT COUNT(*) FROM fsa_node WHERE state = 'alive'")

    def send(self, count: int) -> None:
        """As the scheduler hands over what is due in one instant, or an app asks for."""
        if self.engine == "local":
            for start in range(0, count, AT_ONCE):
                self._app.empty_local.enqueue_many([{}] * (min(count, start + AT_ONCE) - start))
            return
        first_ms = self._before_ms = self._before_ms - count
        dues = [
            Due(f"empty_{self.engine}", first_ms + n, executor=self.engine, queue="fsa")
            for n in range(count)
        ]
        for start in range(0, count, AT_ONCE):
            claimed = claim_due(
                self._enqueuer.ledger,
                "benchmark",
                dues[start : start + AT_ONCE],
                window_ms=600_000,
                dispatch=self._executor.joined,
            )
            if not self._executor.joined:
                self._executor.publish([Message(each.run_id, "fsa") for each in claimed.mine])

    def send_one(self) -> None:
        getattr(self._app, f"tell_{self.engine}").enqueue()

    def enqueue(self) -> None:
        """Ask for an empty one in the transaction of `db.session`."""
        self._app.empty_local.using(session=db.session).enqueue()

    def ended(self) -> int:
        return self._place.number("SELECT COUNT(*) FROM fsa_run WHERE status = 'succeeded'")

    def messages(self) -> int:
        """What is in the engine, begun or not."""
        if self.engine == "celery":
            return int(self._place.redis.llen("fsa"))
        return self._place.number("SELECT COUNT(*) FROM procrastinate_jobs")


class OwnProcrastinate:
    title = "Procrastinate's own"

    def __init__(self, place: Place) -> None:
        self._place = place
        self._app = importlib.import_module("engine_procrastinate")
        self._open = self._app.app.open()

    def argv(self) -> list[str]:
        options = ["--concurrency", str(CONCURRENCY), "--queues", "default"]
        app = "--app=engine_procrastinate.app"
        return ["procrastinate", app, "--log-level", "warning", "worker", *options]

    def environ(self) -> Mapping[str, str]:
        return {}

    def reset(self) -> None:
        self._place.execute("TRUNCATE procrastinate_jobs, procrastinate_workers CASCADE")

    def up(self) -> int:
        return self._place.number("SELECT COUNT(*) FROM procrastinate_workers")

    def send(self, count: int) -> None:
        for start in range(0, count, AT_ONCE):
            self._app.empty.batch_defer(*[{}] * (min(count, start + AT_ONCE) - start))

    def send_one(self) -> None:
        self._app.told.defer()

    def enqueue(self) -> None:
        connection = db.session.connection().connection.driver_connection
        self._app.empty.configure(connection=connection).defer()

    def ended(self) -> int:
        return self._place.number(
            "SELECT COUNT(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
        )


class OwnPgQueuer:
    """Where it is installed. Its tables are made anew, and are as durable as PostgreSQL's are."""

    title = "PgQueuer's own"

    def __init__(self, place: Place) -> None:
        queries = importlib.import_module("pgqueuer.queries")
        drivers = importlib.import_module("pgqueuer.adapters.drivers.psycopg")
        self._place = place
        self._dsn = place.url.replace("+psycopg", "")
        for command in ("uninstall", "install"):
            self._command(command)
        # It refuses a connection that is not in autocommit, and so a session's.
        self._connection = psycopg.connect(self._dsn, autocommit=True)
        self._queries = queries.SyncQueries(drivers.SyncPsycopgDriver(self._connection))

    def _command(self, command: str) -> None:
        argv = [str(SCRIPTS / "pgq"), "--pg-dsn", self._dsn, command]
        subprocess.run(argv, check=command == "install", capture_output=True)

    def argv(self) -> list[str]:
        return ["python", "engine_pgqueuer.py", str(CONCURRENCY)]

    def environ(self) -> Mapping[str, str]:
        return {}

    def reset(self) -> None:
        self._place.execute("TRUNCATE pgqueuer, pgqueuer_log")

    def up(self) -> int:
        return self._place.number(
            "SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'pgq'"
            " AND datname = current_database()"
        )

    def send(self, count: int) -> None:
        for start in range(0, count, AT_ONCE):
            number = min(count, start + AT_ONCE) - start
            self._queries.enqueue(["empty"] * number, [None] * number, [0] * number)

    def send_one(self) -> None:
        self._queries.enqueue("tell", None)

    def enqueue(self) -> None:
        with self._connection.transaction():
            self._queries.enqueue("empty", None)

    def ended(self) -> int:
        return self._place.number("SELECT COUNT(*) FROM pgqueuer_log WHERE status = 'successful'")


class OwnCelery:
    """Celery's own tasks; *results*: with its database result backend."""

    def __init__(self, place: Place, pool: str, *, results: bool) -> None:
        self.title = f"Celery's own, {pool}, results {'recorded' if results else 'ignored'}"
        self._place, self._pool, self._results = place, pool, results
        self._sent = 0

    def argv(self) -> list[str]:
        options = ["-P", self._pool, "-c", str(CONCURRENCY), "-n", f"{os.urandom(4).hex()}@here"]
        return ["celery", "-A", "engine_celery", "worker", *options]

    def environ(self) -> Mapping[str, str]:
        return {"RESULTS": f"db+{self._place.url}"} if self._results else {}

    def reset(self) -> None:
        self._place.redis.flushdb()
        self._place.execute(
            "DO $$ BEGIN IF to_regclass('celery_taskmeta') IS NOT NULL THEN"
            " TRUNCATE celery_taskmeta; END IF; END $$"
        )
        self._sent = 0

    def up(self) -> int:
        return len(_celery().app.control.inspect(timeout=0.5).ping() or {})

    def send(self, count: int) -> None:
        app, empty = _celery().app, _celery().empty
        with app.producer_or_acquire() as producer:
            for _ in range(count):
                empty.apply_async(producer=producer, ignore_result=not self._results)
        self._sent += count

    def send_one(self) -> None:
        _celery().told.delay()

    def ended(self) -> int:
        if self._results:
            return self._place.number("SELECT COUNT(*) FROM celery_taskmeta")
        return self._sent - int(self._place.redis.llen("own") + self._place.redis.hlen("unacked"))


def _pgqueuer(place: Place) -> list[OwnPgQueuer]:
    return [OwnPgQueuer(place)] if find_spec("pgqueuer") is not None else []


def _celery() -> Any:
    return importlib.import_module("engine_celery")


@contextmanager
def workers(contestant: Contestant) -> Iterator[None]:
    """Two of them, warm."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([str(APPS), os.environ.get("PYTHONPATH", "")])
        environ = {**os.environ, "PYTHONPATH": path, "FSA_STATE_DIR": folder}
        environ |= contestant.environ()
        log = Path(folder, "log")
        processes = [_process(contestant.argv(), environ, log) for _ in range(WORKERS)]
        try:
            _until(lambda: contestant.up() >= WORKERS, 30, log)
            contestant.send(WARMED_BY)
            _until(lambda: contestant.ended() >= WARMED_BY, 30, log)
            time.sleep(1)
            yield
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(60)


def _process(argv: list[str], environ: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("a") as file:
        return subprocess.Popen(
            [SCRIPTS / argv[0], *argv[1:]], cwd=APPS, env=environ, stdout=file, stderr=file
        )


def _until(done: Callable[[], bool], within_s: float, log: Path) -> None:
    deadline = time.monotonic() + within_s
    while not done():
        if time.monotonic() > deadline:
            sys.exit(log.read_text()[-3000:] + "\nthe workers do not come forward")
        time.sleep(0.05)


def a_second(contestant: Contestant, count: int) -> float:
    """How many a second, from the first that is sent to the last that is recorded."""
    contestant.reset()
    with workers(contestant):
        before = contestant.ended()
        began = time.perf_counter()
        contestant.send(count)
        deadline = began + WITHIN_S
        while (ended := contestant.ended() - before) < count:
            if time.perf_counter() > deadline:
                sys.exit(f"{contestant.title}: only {ended:,} have ended after {WITHIN_S} s")
            time.sleep(0.05)
        return count / (time.perf_counter() - began)


def throughput(place: Place, engines: list[str], count: int, rounds: int) -> None:
    for engine in engines:
        contestants: list[Contestant] = [Ours(place, engine)]
        if engine != "celery":
            contestants += [OwnProcrastinate(place)]
        if engine == "local":
            contestants += [*_pgqueuer(place), OwnCelery(place, "threads", results=True)]
        if engine == "celery":
            contestants += [
                OwnCelery(place, pool, results=results)
                for results in (True, False)
                for pool in ("threads", "prefork")
            ]
        found: dict[str, list[float]] = {each.title: [] for each in contestants}
        for _ in range(rounds):
            for each in contestants:
                found[each.title].append(a_second(each, count))
        print(f"\n{count:,} empty tasks over {engine}, two workers, a second, median of {rounds}")
        ours = statistics.median(found[contestants[0].title])
        for title, values in found.items():
            middle = statistics.median(values)
            ratio = "" if title.startswith("ours") else f"   ours is {ours / middle:.2f} x"
            print(f"  {title:<42} {middle:>6.0f}   {[round(v) for v in values]}{ratio}", flush=True)


def enqueueing(place: Place, rounds: int, count: int = 300) -> None:
    """In the caller's transaction, which does nothing else; in turns. By the clock, and of CPU."""
    contestants = [Ours(place, "local"), OwnProcrastinate(place), *_pgqueuer(place)]
    backends = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    found: dict[str, list[tuple[float, float]]] = {each.title: [] for each in contestants}
    for each in contestants:
        each.reset()
    for number in range(rounds + 1):
        for each in contestants:
            before_s = time.perf_counter(), _cpu_s(place.numbers(backends))
            for _ in range(count):
                with db(commit_on_exit=True):
                    each.enqueue()
            after_s = time.perf_counter(), _cpu_s(place.numbers(backends))
            if number:  # the first one is to warm up
                found[each.title].append((after_s[0] - before_s[0], after_s[1] - before_s[1]))
    print(f"\nenqueued in the caller's transaction, one process, {rounds} times {count}")
    for title, values in found.items():
        wall_s, cpu_s = (statistics.median(each) / count for each in zip(*values, strict=True))
        print(
            f"  {title:<42} {1 / wall_s:>6.0f} a second   {cpu_s * 1e6:>5.0f} us of CPU", flush=True
        )


def _cpu_s(backends: list[int]) -> float:
    """Of this process and of PostgreSQL's."""
    stats = [Path(f"/proc/{pid}/schedstat").read_text() for pid in backends]
    return time.process_time() + sum(int(each.split()[0]) for each in stats) / 1e9


def latency(place: Place, engines: list[str], samples: int) -> None:
    """One at a time to idle workers; ours and the engine's own in turns."""
    for engine in engines:
        own = (
            OwnCelery(place, "threads", results=False)
            if engine == "celery"
            else OwnProcrastinate(place)
        )
        contestants: list[Contestant] = [own, Ours(place, engine)]
        if engine == "local":
            contestants += _pgqueuer(place)
        found: dict[str, list[float]] = {each.title: [] for each in contestants}
        for each in contestants:
            each.reset()
        with ExitStack() as stack, _told() as told:
            for each in contestants:
                stack.enter_context(workers(each))
            for number in range(samples + 5):
                for each in contestants:
                    time.sleep(0.03)
                    began = time.time()
                    each.send_one()
                    late_ms = (told() - began) * 1000
                    if number >= 5:
                        found[each.title].append(late_ms)
        print(f"\nfrom being sent to the start over {engine}, ms, {samples} one at a time")
        p50 = {title: statistics.median(values) for title, values in found.items()}
        for title, values in found.items():
            p95 = statistics.quantiles(values, n=20)[-1]
            more = f"   own + {p50[title] - p50[own.title]:.1f}" if title != own.title else ""
            print(f"  {title:<42} p50 {p50[title]:>5.1f}   p95 {p95:>5.1f}{more}", flush=True)


@contextmanager
def _told() -> Iterator[Callable[[], float]]:
    """What `telling.tell` sends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", int(os.environ["TOLD"])))
        listening.settimeout(30)
        yield lambda: float(listening.recv(100))


def waiting(place: Place, engines: list[str], waits_s: float, count: int = 10_000) -> None:
    """Whether messages that only wait are sent again."""
    for engine in engines:
        ours = Ours(place, engine)
        ours.reset()
        with tempfile.TemporaryDirectory() as folder:
            argv = [str(SCRIPTS / "fsa"), "-q", "--app", "engine_ours:app", "scheduler", "start"]
            environ = {**os.environ, "FSA_STATE_DIR": folder}
            with subprocess.Popen(argv, cwd=APPS, env=environ) as process:
                ours.send(count)
                before = ours.messages()
                time.sleep(waits_s)
                after = ours.messages()
                process.terminate()
        print(f"\n{count:,} runs wait {waits_s:g} s for a worker over {engine}")
        print(f"  messages in its queue: {before:,} before, {after:,} after", flush=True)
        ours.reset()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgresql", metavar="URL", required=True, help="its tables may go")
    parser.add_argument("--redis", metavar="URL", required=True, help="its keys may go")
    parser.add_argument("--engine", choices=["local", "procrastinate", "celery"], help="else all")
    parts = ["enqueue", "throughput", "latency", "waiting"]
    parser.add_argument("--part", choices=parts, help="else all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--waiting-s", type=float, default=90)
    given = parser.parse_args()
    os.environ |= {
        "URL": given.postgresql,
        "REDIS": given.redis,
        "FSA_BROKER_URL": given.redis,
        "FSA_APP": "engine_ours:app",
        "FSA_NAMESPACE": "bench",
        "TOLD": "18765",
    }
    sys.path.insert(0, str(APPS))
    place = Place(given.postgresql, given.redis)
    engines = [given.engine] if given.engine else ["local", "procrastinate", "celery"]
    if given.part in (None, "enqueue") and "local" in engines:
        enqueueing(place, given.rounds)
    if given.part in (None, "throughput"):
        throughput(place, engines, given.runs, given.rounds)
    if given.part in (None, "latency"):
        latency(place, engines, given.samples)
    if given.part in (None, "waiting"):
        waiting(place, [each for each in engines if each != "local"], given.waiting_s)


if __name__ == "__main__":
    main()
