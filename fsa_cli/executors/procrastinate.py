"""Procrastinate carries the runs: in PostgreSQL, in the transaction that dispatches them.

Procrastinate's own worker, started by a team itself, executes them too:

    from fsa_cli.executors.procrastinate import register

    register(app)  # a procrastinate.App, whose worker serves the queue "fsa.NAMESPACE"
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import procrastinate
import psycopg
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager
from procrastinate.schema import SchemaManager
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from fastapi_sqlalchemy.engines.connect_args import connect_args_for
from fsa_cli.database.connections import driver_message
from fsa_cli.exceptions import BrokerUnreachable, ConfigurationError, LedgerUnusable
from fsa_cli.ledger.access import reached
from fsa_cli.ledger.dialects import typed
from fsa_cli.ledger.store import Ledger
from fsa_cli.processes import embedded
from fsa_cli.runs.executor import TASK, Message, Surroundings, Take
from fsa_cli.terminal.masking import mask

__all__ = ["Procrastinate", "register"]

# The function that every Procrastinate 3 defers jobs with:
# https://github.com/procrastinate-org/procrastinate/blob/main/procrastinate/sql/schema.sql
_FUNCTION = "procrastinate_defer_jobs_v1"
_IS_READY = text(f"SELECT to_regproc('{_FUNCTION}') IS NOT NULL")
_JOB = (
    f"CAST(ROW({{queue}}, '{TASK}', 0, NULL, NULL,"
    " CAST(json_build_object('run_id', {run_id}) AS JSONB), NULL)"
    " AS procrastinate_job_to_defer_v1)"
)
_DEFER = typed(
    f"""
    SELECT {_FUNCTION}(ARRAY(
        SELECT {_JOB.format(queue="v.queue", run_id="v.run_id")}
        FROM json_to_recordset(CAST(:rows AS JSON)) AS v(run_id TEXT, queue TEXT)
    ))
    """
)
_WAITING = text(
    "SELECT count(*) FROM procrastinate_jobs"
    f" WHERE status = 'todo' AND task_name = '{TASK}' AND queue_name = :queue"
)
# Procrastinate leaves the jobs of workers that were killed in `doing`, without a worker once their
# heartbeat was missed; the ledger knows whether their runs have started.
_FORGET = text(
    "DELETE FROM procrastinate_jobs"
    f" WHERE status = 'doing' AND task_name = '{TASK}' AND worker_id IS NULL"
)
# The function that Procrastinate fetches one job with, for as many as there is room for.
_FETCHED = "procrastinate_fetch_job_v2(%(queues)s::varchar[], %(worker_id)s)"
_FETCH = f"""
    WITH RECURSIVE fetched(number, job) AS (
        SELECT 1, {_FETCHED}
        UNION ALL
        SELECT number + 1, {_FETCHED} FROM fetched
        WHERE (job).id IS NOT NULL AND number < %(most)s
    )
    SELECT (job).* FROM fetched WHERE (job).id IS NOT NULL ORDER BY number
    """
_DELETE = "DELETE FROM procrastinate_jobs WHERE id = ANY(%(ids)s::bigint[])"
# A listener is notified at once, as long as its connection lives.
_POLLED_EVERY_S = 1.0
_LOOK_S = 0.2
_IDLE_S = 1.0
_CONNECTED_WITHIN_S = 10.0
_LOGGERS = ("asyncio", "procrastinate.utils", "procrastinate.worker", "psycopg.pool")
_POOL = "fsa worker"


class Procrastinate:
    """Jobs in the ledger's own PostgreSQL database, deferred by Procrastinate's SQL function."""

    name = "procrastinate"
    carries = True
    joined = (
        f"SELECT {_FUNCTION}(ARRAY(SELECT {_JOB.format(queue='put.queue', run_id='put.id')}"
        " FROM put))"
    )

    def __init__(self, surroundings: Surroundings) -> None:
        self._ledger: Ledger = surroundings.ledger
        if self._ledger.engine.dialect.name != "postgresql":
            raise ConfigurationError(
                "Procrastinate needs the ledger to be in PostgreSQL",
                details=[f"it is at {self._ledger.where}"],
                hint='ledger_url in [tool.fsa] puts it elsewhere; or executor = "celery"',
            )

    def prepare(self) -> bool:
        with reached(self._ledger):
            if self._is_ready():
                return False
            try:
                with self._ledger.engine.begin() as connection:
                    connection.exec_driver_sql(_escaped(SchemaManager.get_schema()))
            except SQLAlchemyError as exc:
                if self._is_ready():  # another process has created it at this moment
                    return False
                raise LedgerUnusable(
                    "Procrastinate's tables cannot be created",
                    details=[self._ledger.where, mask(driver_message(exc))],
                    hint="procrastinate schema --apply creates them, or fsa scheduler init --sql",
                ) from exc
        return True

    def statements(self) -> Sequence[str]:
        return (SchemaManager.get_schema().strip(),)

    def check(self) -> None:
        with reached(self._ledger):
            if self._is_ready():
                return
        raise ConfigurationError(
            "Procrastinate's tables are missing, or of a version before 3",
            details=[f"looked for the function {_FUNCTION} at {self._ledger.where}"],
            hint="fsa scheduler init creates them; for upgrades: procrastinate schema --help",
        )

    def publish(self, messages: Sequence[Message]) -> None:
        rows = json.dumps([message._asdict() for message in messages])
        try:
            self._ledger.at_once(lambda c: c.execute(_DEFER, {"rows": rows}))
        except SQLAlchemyError as exc:
            raise BrokerUnreachable(
                "Procrastinate's jobs cannot be deferred", details=[driver_message(exc)]
            ) from exc

    def waiting(self, queue: str) -> int:
        def count(connection: Connection) -> int:
            return int(connection.scalar(_WAITING, {"queue": queue}) or 0)

        try:
            self._ledger.at_once(lambda connection: connection.execute(_FORGET))
            return self._ledger.read(count)
        except SQLAlchemyError as exc:
            raise BrokerUnreachable(
                "Procrastinate's jobs cannot be read", details=[driver_message(exc)]
            ) from exc

    def consume(
        self, take: Take, *, queues: Collection[str], concurrency: int, stop: threading.Event
    ) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_is_worth_logging)
        try:
            asyncio.run(self._serve(take, queues, concurrency, stop))
        except (ConnectorException, psycopg.Error, OSError) as exc:
            said, *_ = mask(str(exc.__cause__ or exc)).strip().splitlines() or [repr(exc)]
            raise BrokerUnreachable(f"Procrastinate's jobs cannot be fetched: {said}") from exc

    def close(self) -> None:
        pass

    def _is_ready(self) -> bool:
        return bool(self._ledger.read(lambda connection: connection.scalar(_IS_READY)))

    async def _serve(
        self, take: Take, queues: Collection[str], concurrency: int, stop: threading.Event
    ) -> None:
        app = procrastinate.App(connector=_connector(self._connecting()))
        app.job_manager = jobs = _Jobs(app.connector, concurrency)
        register(app, take)
        async with app.open_async():
            worker = asyncio.create_task(
                app.run_worker_async(
                    queues=list(queues),
                    concurrency=concurrency,
                    fetch_job_polling_interval=_POLLED_EVERY_S,
                    delete_jobs="always",
                    install_signal_handlers=False,
                )
            )
            while not worker.done() and not stop.is_set():
                await asyncio.wait({worker}, timeout=_LOOK_S)
            if not worker.done():
                worker.cancel()  # it fetches no more, and waits for what it has started
            with contextlib.suppress(asyncio.CancelledError):
                await worker
            for job in jobs.unbegun():
                await asyncio.wrap_future(take(str(job.task_kwargs["run_id"])))
                await jobs.finish_job(job, Status.SUCCEEDED, delete_job=True)

    def _connecting(self) -> dict[str, Any]:
        """psycopg's arguments, whatever driver the ledger's URL names."""
        given = self._ledger.engine.url
        url = given.set(drivername="postgresql+psycopg")
        _, arguments = url.get_dialect()().create_connect_args(url)
        more = connect_args_for(self._ledger.connect_args, given, url)
        return {"application_name": _POOL, **arguments, **more}


def register(app: procrastinate.App, take: Take | None = None) -> None:
    """Make `fsa.run` a task of *app*.

    Args:
        take: None: the worker's process loads the app of the directory that it was started in, as
            `fsa` does, and executes the runs itself.
    """

    @app.task(name=TASK)
    async def run(run_id: str) -> None:
        if take is not None:
            await asyncio.wrap_future(take(run_id))
        else:
            await asyncio.wrap_future(await asyncio.to_thread(embedded.take, run_id))


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """False for records of a database that is away: `consume` raises that, once."""
    if record.name == "psycopg.pool":
        return not (isinstance(record.args, tuple) and _POOL in record.args)
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (ConnectorException, OSError))


class _Jobs(JobManager):
    """Fetches as many jobs in one statement as there is room for, and deletes finished ones so.

    Args:
        concurrency: How many a worker has in hand at most.
    """

    def __init__(self, connector: Any, concurrency: int) -> None:
        super().__init__(connector)
        self._concurrency = concurrency
        self._fetched: deque[Job] = deque()
        self._in_hand = 0
        self._turn = asyncio.Lock()
        self._ended: list[int | None] = []
        self._deletion: asyncio.Task[None] | None = None

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> Job | None:
        if not self._fetched:
            rows = await self.connector.execute_query_all_async(
                _FETCH,
                queues=queues,
                worker_id=worker_id,
                most=max(self._concurrency - self._in_hand, 1),
            )
            self._fetched.extend(Job.from_row(row) for row in rows)
        if not self._fetched:
            return None
        self._in_hand += 1
        return self._fetched.popleft()

    def unbegun(self) -> Iterator[Job]:
        """The jobs that were fetched and not started before the worker ended."""
        while self._fetched:
            self._in_hand += 1
            yield self._fetched.popleft()

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        if self._deletion is None:
            self._ended = []
            self._deletion = asyncio.create_task(self._delete(self._ended))
        self._ended.append(job.id)
        try:
            await asyncio.shield(self._deletion)
        finally:
            self._in_hand -= 1

    async def _delete(self, job_ids: Sequence[int | None]) -> None:
        async with self._turn:
            self._deletion = None
            await self.connector.execute_query_async(_DELETE, ids=job_ids)


def _connector(arguments: dict[str, Any]) -> procrastinate.PsycopgConnector:
    return procrastinate.PsycopgConnector(
        pool_factory=_pool,
        configure=_in_autocommit,
        kwargs=arguments,
        min_size=1,
        max_size=4,
        timeout=_CONNECTED_WITHIN_S,
    )


def _pool(*, check: Callable[[AsyncConnection], Awaitable[None]], **more: Any) -> Any:
    """A pool that looks whether a connection is alive only when it was idle.

    Procrastinate's own looks each time, which takes as long as what it is wanted for.
    """
    used_s: WeakKeyDictionary[AsyncConnection, float] = WeakKeyDictionary()

    async def check_idle(connection: AsyncConnection) -> None:
        now_s = time.monotonic()
        if now_s - used_s.get(connection, now_s) > _IDLE_S:
            await check(connection)
        used_s[connection] = now_s

    return _Pool(check=check_idle, name=_POOL, **more)


class _Pool(AsyncConnectionPool):
    """Waits for its first connection as long as for any other."""

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        await super().open(wait, min(timeout, self.timeout))


async def _in_autocommit(connection: AsyncConnection) -> None:
    """Each of Procrastinate's calls is one statement: BEGIN and COMMIT would be two more."""
    await connection.set_autocommit(True)


def _escaped(sql: str) -> str:
    return sql.replace("%", "%%")
