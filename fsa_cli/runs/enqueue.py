"""`task.enqueue`: ask for a run, from the app's own code or for a person.

    count_users.task.enqueue(active=True)
    count_users.task.enqueue(active=True, session=db.session)

With a session, and the ledger in its database, the run is part of the session's transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from fsa_cli.exceptions import ArgumentError, BrokerUnreachable, UsageError
from fsa_cli.ledger import redelivery
from fsa_cli.ledger.access import reached
from fsa_cli.ledger.enqueue import Inserted, insert_run, write_run
from fsa_cli.ledger.location import ledger_of, shares
from fsa_cli.ledger.records import NewRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.project.settings import Settings
from fsa_cli.runs.after_commit import after_commit
from fsa_cli.runs.executor import Executor, Message
from fsa_cli.runs.executor_registry import ExecutorRegistry, queue_name
from fsa_cli.runs.process_databases import databases_here, process_key
from fsa_cli.runs.requester import requester
from fsa_cli.tasks import arguments
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.enqueue_capture import captured
from fsa_cli.tasks.signature import signature_of
from fsa_cli.terminal.escaping import escape_record
from fsa_cli.terminal.json_values import jsonable

__all__ = ["Enqueuer", "aenqueue", "arguments_of", "enqueue", "enqueuer_here"]

logger = logging.getLogger("fsa.enqueue")
logger.addFilter(escape_record)

_SENT_SOON_MS = 1000
# To find out that a broker is away may take seconds: not every request is to wait for that.
_AWAY_FOR_S = 10.0


def enqueue(
    task: TaskDefinition, args: Sequence[Any], kwargs: Mapping[str, Any], session: object = None
) -> str:
    """Enqueue a run of *task*, as `Task.enqueue`."""
    if isinstance(session, AsyncSession):
        raise UsageError(
            f"{task.name}.task.enqueue was given an AsyncSession",
            hint=f"await {task.name}.task.aenqueue(..., session=session)",
        )
    text = arguments_of(task, _arguments_by_name(task, args, kwargs))
    if captured(task.name):
        return uuid.uuid4().hex
    return enqueuer_here().enqueue(task, text, _session(task, session))


async def aenqueue(
    task: TaskDefinition, args: Sequence[Any], kwargs: Mapping[str, Any], session: object = None
) -> str:
    """Enqueue a run of *task*, as `Task.aenqueue`."""
    text = arguments_of(task, _arguments_by_name(task, args, kwargs))
    if captured(task.name):
        return uuid.uuid4().hex
    here = await asyncio.to_thread(enqueuer_here)
    if session is None:
        return await asyncio.to_thread(here.enqueue, task, text)
    await asyncio.to_thread(here.prepare, here.executors.of(task))
    if isinstance(session, AsyncSession):
        return await session.run_sync(lambda sync: here.enqueue(task, text, sync))
    return here.enqueue(task, text, _session(task, session))


def arguments_of(task: TaskDefinition, values: Mapping[str, Any]) -> str:
    """The values as JSON for the ledger, checked so that they are read back as they are.

    Raises:
        UsageError: One is a secret, or JSON cannot hold it.
    """
    signature = signature_of(task.function)
    secret = [p.label for p in signature.parameters if p.is_secret and p.name in values]
    if secret:
        raise UsageError(
            f"{', '.join(secret)} is a secret, and the ledger keeps none",
            hint=f"fsa run-task {task.name} runs it here",
        )
    arguments.bind(signature, values)
    document = jsonable(arguments.encoded(signature, values))
    if not isinstance(document, dict):
        raise ArgumentError(f"the arguments of {task.name} cannot be kept as JSON: {values!r}")
    arguments.bind(signature, document)
    return json.dumps(document, ensure_ascii=False)


class Enqueuer:
    """Writes runs into a ledger, and sends their messages to brokers."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self.ledger = ledger
        self.executors = ExecutorRegistry(ledger, settings)
        self._ready: set[str] = set()
        self._away_until_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def enqueue(
        self,
        task: TaskDefinition,
        arguments: str,
        session: Session | None = None,
        *,
        run_id: str | None = None,
        by: str | None = None,
    ) -> str:
        """Enqueue a run of *task*; the run's id.

        Args:
            arguments: As `arguments_of` returns them.
            session: The run is part of its transaction.
            run_id: Its id; None: a new one.
            by: Who asks; None: the user of this process.

        Raises:
            ConfigurationError: There is no such executor, or it is not ready.
            DatabaseUnreachable: The ledger's database is away.
        """
        executor = self.executors.of(task)
        self.prepare(executor)
        new_run = NewRun(
            run_id or uuid.uuid4().hex,
            task.name,
            arguments,
            executor=executor.name,
            queue=queue_name(task, self.ledger.namespace) if executor.carries else task.queue,
            dispatched=executor.carries,
            by=by or requester(),
        )
        if session is None:
            self._write(new_run, executor)
            return new_run.run_id
        connection = session.connection()
        inserted: Inserted = "not"
        if shares(self.ledger, connection.engine.url):
            inserted = insert_run(self.ledger, connection, new_run, executor.joined)
        if inserted == "not":
            after_commit(session, lambda: self._write(new_run, executor))
        elif inserted == "alone" and executor.carries:
            after_commit(session, lambda: self._publish(new_run, executor))
        return new_run.run_id

    def prepare(self, executor: Executor) -> None:
        """Check, once, that the ledger and what *executor* needs exist; raises as `enqueue`."""
        if executor.name in self._ready:
            return
        with self._lock, reached(self.ledger):
            self.ledger.create()
            executor.check()
            _ = self.ledger.schema  # looked up here, where no event loop waits
        self._ready.add(executor.name)

    def _write(self, new_run: NewRun, executor: Executor) -> None:
        with reached(self.ledger):
            write_run(self.ledger, new_run, executor.joined)
        if executor.carries and not executor.joined:
            self._publish(new_run, executor)

    def _publish(self, new_run: NewRun, executor: Executor) -> None:
        """Send its message; if that fails, the ledger's redelivery sends it later."""
        try:
            self._send(new_run, executor)
        except BrokerUnreachable as exc:
            logger.warning("%s; the run %s is sent later", exc.message.rstrip("."), new_run.run_id)
            with contextlib.suppress(SQLAlchemyError):  # then a little later
                redelivery.mark_unsent(self.ledger, [new_run.run_id], _SENT_SOON_MS)

    def _send(self, new_run: NewRun, executor: Executor) -> None:
        if time.monotonic() < self._away_until_s.get(executor.name, float("-inf")):
            raise BrokerUnreachable(f"{executor.name} is away")
        try:
            executor.publish([_message(new_run)])
        except BrokerUnreachable:
            self._away_until_s[executor.name] = time.monotonic() + _AWAY_FOR_S
            raise


def _message(new_run: NewRun) -> Message:
    assert new_run.queue is not None
    return Message(new_run.run_id, new_run.queue)


def _arguments_by_name(
    task: TaskDefinition, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    if not args:
        return dict(kwargs)
    kinds = inspect.signature(task.function).parameters
    names = [
        parameter.name
        for parameter in signature_of(task.function).parameters
        if kinds[parameter.name].kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    if len(args) > len(names):
        raise ArgumentError(
            f"{task.name} takes {len(names)} arguments without a name, and was given {len(args)}",
            hint=f"it takes {', '.join(names)}" if names else None,
        )
    values = dict(zip(names, args, strict=False))
    if twice := values.keys() & kwargs.keys():
        raise ArgumentError(f"{task.name} was given {', '.join(sorted(twice))} twice")
    return {**values, **kwargs}


def _session(task: TaskDefinition, session: object) -> Session | None:
    if session is None or isinstance(session, Session):
        return session
    raise UsageError(
        f"{task.name}.task.enqueue was given {session!r} as its session",
        hint="session=db.session",
    )


# -- the enqueuer of this process ------------------------------------------------------------------

_lock = threading.Lock()
# A forked child leaves its parent's where it is: what ends it would end the parent's connections.
_enqueuers: dict[tuple[object, ...], Enqueuer] = {}


def enqueuer_here() -> Enqueuer:
    """The enqueuer of this process; a forked child has its own.

    Raises:
        ConfigurationError: There is no ledger here.
    """
    key = process_key()
    with _lock:
        if key not in _enqueuers:
            databases, chosen = databases_here()
            _enqueuers[key] = Enqueuer(ledger_of(databases, chosen), chosen)
        return _enqueuers[key]
