"""What the console's pages cost on a large ledger: CPU time of its process and its database."""

import argparse
import asyncio
import importlib
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

APPS = Path(__file__).parent / "apps"
NAMESPACE = "bench"
TASKS = 300
PAGES = {
    "Now": "",
    "Now, a day": "?span=24h",
    "Now, all lanes": "?lanes=all",
    "Now, all lanes, a day": "?lanes=all&span=24h",
    "Runs": "runs",
    "Runs, failed": "runs?status=failed",
    "Runs, of a rare error": "runs?error=NoSuchError",
    "Run": "run?id={run}",
    "Tasks": "tasks",
    "Task": "task?name=task7",
    "Coming": "coming",
    "Queues": "queues",
    "Nodes": "nodes",
    "Database": "database",
    "Audit": "audit",
}
# A run of each task every three minutes: the latest 3 % of them have not ended well, ten go on, and
# a hundred wait.
RUNS = """
WITH RECURSIVE series (n) AS (
    SELECT CAST(:first AS bigint) UNION ALL SELECT n + 1 FROM series WHERE n < :last
)
INSERT INTO fsa_run (id, namespace, task, scheduled_ms, slot, kind, status, arguments, executor,
    attempt, not_before_ms, node, queued_ms, started_ms, finished_ms, error_type, error, traceback)
SELECT {id}, :namespace, 'task' || (n % :tasks), at, 'S', 'schedule',
    status, '{}', 'local', 1, at, CASE WHEN begun THEN 'node1' END, at,
    CASE WHEN begun THEN at + 40 END, CASE WHEN begun THEN at + 40 + n % 9000 END,
    CASE WHEN status = 'failed' THEN 'ValueError' END,
    CASE WHEN status = 'failed' THEN 'no ' || (n % 7) END,
    CASE WHEN status = 'failed' THEN :traceback END
FROM (
    SELECT n, at, status, status NOT IN ('missed', 'skipped') AS begun
    FROM (
        SELECT n, :now - (:runs - n) / :tasks * 180000 - n % 3 * 60000 - :now % 60000 AS at,
            CASE WHEN n % 97 = 5 THEN 'failed' WHEN n % 211 = 7 THEN 'missed'
                WHEN n % 157 = 3 THEN 'skipped' WHEN n % 997 = 1 THEN 'timed_out'
                ELSE 'succeeded' END AS status
        FROM series
    ) AS each
) AS run
"""
OPEN = """
WITH RECURSIVE series (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series WHERE n < 109)
INSERT INTO fsa_run (id, namespace, task, scheduled_ms, slot, kind, status, arguments, executor,
    attempt, not_before_ms, node, queued_ms, started_ms)
SELECT 'open' || n, :namespace, 'task' || (n % :tasks), :now - n, 'open' || n,
    'manual', CASE WHEN n < 10 THEN 'running' ELSE 'queued' END, '{}', 'local', 1, :now - n,
    CASE WHEN n < 10 THEN 'node1' END, :now - n, CASE WHEN n < 10 THEN :now - n END
FROM series
"""
NODE = """
INSERT INTO fsa_node (id, namespace, host, pid, version, role, state, started_ms, covered_from_ms,
    lease_until_ms)
VALUES ('node1', :namespace, 'here', 1, '1', 'scheduler', 'alive', :now, :now, :now + 86400000)
"""
KNOWN = """
WITH RECURSIVE series (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series WHERE n < :tasks - 1)
INSERT INTO fsa_task (namespace, name, options, schedule_hash, watermark_ms, last_success_ms,
    consecutive_failures)
SELECT :namespace, 'task' || n,
    '{"schedule": "' || (n % 3) || '-59/3 * * * *", "timezone": "UTC"}', 'hash', :now, :now,
    CASE WHEN n % 40 = 0 THEN 3 ELSE 0 END
FROM series
"""
FIRED = """
WITH RECURSIVE series (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series WHERE n < :tasks - 1)
INSERT INTO fsa_node_task (node, task, schedule_hash, since_ms)
SELECT 'node1', 'task' || n, 'hash', :now
FROM series
"""
TRACEBACK = "a line of a traceback\n" * 30
PART = 200_000


def fill(runs: int) -> None:
    """The ledger's tables with so many runs, up to now."""
    from fsa_cli.console.source import source_here
    from fsa_cli.ledger import tables

    importlib.import_module("console_app")
    ledger = source_here().ledger
    tables.metadata.drop_all(ledger.engine)
    ledger.create()
    now_ms = int(time.time() * 1000)
    given = {"namespace": NAMESPACE, "tasks": TASKS, "now": now_ms, "traceback": TRACEBACK}
    with ledger.engine.begin() as connection:
        for statement in (NODE, KNOWN, FIRED, OPEN):
            connection.execute(text(statement), given)
    run_id = "lower(hex(randomblob(16)))" if ledger.is_sqlite else "md5(CAST(n AS text))"
    for first in range(0, runs, PART):
        part = {"first": first, "last": min(first + PART, runs) - 1, "runs": runs}
        with ledger.engine.begin() as connection:
            connection.execute(text(RUNS.replace("{id}", run_id)), {**given, **part})
    if not ledger.is_sqlite:
        with ledger.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("VACUUM ANALYZE"))


class Database:
    """The ledger's database as somebody else sees it."""

    def __init__(self) -> None:
        from fsa_cli.console.source import source_here

        importlib.import_module("console_app")
        self._engine = create_engine(source_here().ledger.engine.url, isolation_level="AUTOCOMMIT")

    def change(self) -> str:
        """Have something change, so that a page is made anew; the id of some run."""
        with self._engine.connect() as connection:
            connection.execute(
                text("UPDATE fsa_task SET watermark_ms = watermark_ms + 1 WHERE name = 'task0'")
            )
            run = text("SELECT id FROM fsa_run WHERE namespace = :n ORDER BY scheduled_ms LIMIT 1")
            return str(connection.execute(run, {"n": NAMESPACE}).scalar_one())

    def cpu_ms(self) -> float:
        """CPU time of this process's other connections so far; of servers on this machine alone.

        SQLite's is this process's own.
        """
        if self._engine.dialect.name == "sqlite":
            return 0.0
        with self._engine.connect() as connection:
            others = text(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND "
                "pid != pg_backend_pid() AND application_name = current_setting('application_name')"
            )
            pids = list(connection.execute(others).scalars())
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6 for pid in pids)


async def get(app: Any, address: str) -> bytes:
    """The body of a page, as the browser gets it."""
    path, _, query = f"/ops/{address}".partition("?")
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"here"), (b"accept-encoding", b"gzip")],
        "http_version": "1.1",
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("here", 80),
        "root_path": "",
    }
    body = b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        nonlocal body
        assert message.get("status", 200) == 200, address
        body += message.get("body", b"")

    await app(scope, receive, send)
    return body


async def measure(page: str, requests: int) -> None:
    """Print the CPU time of a page in this process: of the first, then of half and 95 % of more."""
    os.environ["PGAPPNAME"] = f"console {os.getpid()}"
    database = Database()
    app = importlib.import_module("console_app").app
    address = page.format(run=database.change())
    spent: list[tuple[float, float]] = []
    async with app.router.lifespan_context(app):
        while any(each.name == "fsa console" for each in threading.enumerate()):
            await asyncio.sleep(0.1)  # until what a first page needs is loaded
        for _ in range(requests + 1):
            database.change()
            before_ms, begun_s = database.cpu_ms(), time.process_time()
            body = await get(app, address)
            took_ms = (time.process_time() - begun_s) * 1000
            spent.append((took_ms, database.cpu_ms() - before_ms))
    first, *later = (sum(each) for each in spent)
    own = statistics.median(each for each, _ in spent[1:])
    later.sort()
    print(
        f"first {first:6.1f} ms   median {statistics.median(later):5.1f} ms (process {own:5.1f})   "
        f"p95 {later[int(len(later) * 0.95) - 1]:5.1f} ms   {len(body) / 1000:5.1f} kB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="PostgreSQL's, or of a file of SQLite")
    parser.add_argument("--fill", type=int, metavar="RUNS", help="make the ledger anew before")
    parser.add_argument("--requests", type=int, default=100, help="of each page")
    parser.add_argument("--page", help="of these alone, whose name begins so")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.update(URL=options.url, FSA_NAMESPACE=NAMESPACE)
    sys.path.insert(0, str(APPS))
    if options.measure is not None:
        asyncio.run(measure(PAGES[options.measure], options.requests))
        return
    if options.fill:
        fill(options.fill)
    for name in PAGES:
        if name.startswith(options.page or ""):
            print(f"{name:22}", end=" ", flush=True)
            # Each in a process of its own: the first one of each is counted.
            subprocess.run([sys.executable, *sys.argv, "--measure", name], check=True)


if __name__ == "__main__":
    main()
