"""`enqueue`: ask for runs, from the app's own code or for a person.

    count_users.enqueue(active=True)
    count_users.using(session=db.session).enqueue(active=True)

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
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from fsa_cli.exceptions import ArgumentError, BrokerUnreachable, UsageError
from fsa_cli.ledger import redelivery
from fsa_cli.ledger.access import reached
from fsa_cli.ledger.enqueue import insert_runs_of, write_run, write_runs
from fsa_cli.ledger.location import ledger_of, shares
from fsa_cli.ledger.records import NewRun
from fsa_cli.ledger.store import Ledger
from fsa_cli.project.settings import Settings
from fsa_cli.runs.after_commit import after_commit
from fsa_cli.runs.executor import Executor, Message
from fsa_cli.runs.executor_registry import ExecutorRegistry, queue_name
from fsa_cli.runs.process_databases import databases_here, process_key
from fsa_cli.runs.requester import requester
from fsa_cli.runs.run_options import RunOptions, check_unique
from fsa_cli.runs.task_result import HeldResult, TaskResult
from fsa_cli.runs.unserved import UnservedRuns, unserved
from fsa_cli.tasks.definition import TaskDefinition
from fsa_cli.tasks.enqueue_capture import captured, diversion
from fsa_cli.tasks.kept_arguments import as_given
from fsa_cli.tasks.signature import signature_of
from fsa_cli.terminal.escaping import escape_record
from fsa_cli.terminal.formatting import format_bytes

__all__ = [
    "Call",
    "Enqueuer",
    "aenqueue",
    "arguments_by_name",
    "arguments_of",
    "enqueue",
    "enqueuer_here",
]

#: The arguments of one run: those without a name, and those with one.
Call = tuple[Sequence[Any], Mapping[str, Any]]

logger = logging.getLogger("fsa.enqueue")
logger.addFilter(escape_record)

_SENT_SOON_MS = 1000
# To find out that a broker is away may take seconds: not every request is to wait for that.
_AWAY_FOR_S = 10.0
# MySQL's servers take 16 MB in one statement, in which JSON is quoted once more.
_MOST_ARGUMENTS = 4_000_000
_PLAIN = RunOptions()


def enqueue(
    task: TaskDefinition, calls: Sequence[Call], options: RunOptions
) -> list[TaskResult[Any]]:
    """Enqueue a run of *task* for each of *calls*.

    Raises:
        ArgumentError: The task takes other arguments.
        UsageError: The session or another option cannot be used so.
        ConfigurationError: There is no ledger here, or no such executor.
        DatabaseUnreachable: The ledger's database is away.
    """
    if isinstance(options.session, AsyncSession):
        raise UsageError(
            f"{task.name}.enqueue was given an AsyncSession",
            hint=f"await {task.name}.using(session=session).aenqueue(...)",
        )
    session = _session(task, options.session)
    texts, keys = _texts(task, calls, options), _keys(task, calls, options)
    if (held := _held_back(task, texts, options, keys)) is not None:
        return held
    return enqueuer_here().enqueue(task, texts, options, session, keys=keys) if texts else []


async def aenqueue(
    task: TaskDefinition, calls: Sequence[Call], options: RunOptions
) -> list[TaskResult[Any]]:
    """As `enqueue`, without blocking the event loop."""
    session = options.session
    if not isinstance(session, AsyncSession):
        session = _session(task, session)
    texts, keys = _texts(task, calls, options), _keys(task, calls, options)
    if (held := _held_back(task, texts, options, keys)) is not None:
        return held
    if not texts:
        return []
    here = await asyncio.to_thread(enqueuer_here)
    if session is None:
        return await asyncio.to_thread(here.enqueue, task, texts, options, keys=keys)
    await asyncio.to_thread(here.prepare, here.executors.of(task))
    if isinstance(session, AsyncSession):
        return await session.run_sync(
            lambda sync: here.enqueue(task, texts, options, sync, keys=keys)
        )
    return here.enqueue(task, texts, options, session, keys=keys)


def _held_back(
    task: TaskDefinition, texts: list[str], options: RunOptions, keys: list[str] | None
) -> list[TaskResult[Any]] | None:
    """The results of runs that a dry run or a test keeps; None: they are to be enqueued."""
    if captured(task.name, len(texts)):
        return [HeldResult(uuid.uuid4().hex, task.name) for _ in texts]
    kept = diversion()
    if kept is None or keys is None:
        return None if kept is None else kept.keep(task, texts, options)
    each = [(text, replace(options, unique=key)) for text, key in zip(texts, keys, strict=True)]
    return [one for text, its_own in each for one in kept.keep(task, [text], its_own)]


def _texts(task: TaskDefinition, calls: Sequence[Call], options: RunOptions) -> list[str]:
    if isinstance(options.unique, str) and len(calls) > 1:
        raise UsageError(
            f"{len(calls)} runs of {task.name} are to have one unique key",
            hint='a function of the arguments: unique=lambda call: f"order:{call[...]}"',
        )
    return [arguments_of(task, arguments_by_name(task, *each)) for each in calls]


def _keys(task: TaskDefinition, calls: Sequence[Call], options: RunOptions) -> list[str] | None:
    """The unique key of each call where a function gives it; None: that of the options."""
    key_of = options.unique
    if key_of is None or isinstance(key_of, str):
        return None
    return [check_unique(key_of(arguments_by_name(task, *each))) for each in calls]


def arguments_of(task: TaskDefinition, values: Mapping[str, Any]) -> str:
    """The values as JSON for the ledger, checked so that they are read back as they are.

    Raises:
        UsageError: One is a secret, or JSON cannot hold it as it is.
    """
    signature = signature_of(task.function)
    secret = [p.label for p in signature.parameters if p.is_secret and p.name in values]
    if secret:
        raise UsageError(
            f"{', '.join(secret)} is a secret, and the ledger keeps none",
            hint=f"fsa run-task {task.name} runs it here; what is none wants another name",
        )
    document = as_given(signature, values)
    if not isinstance(document, dict):
        raise ArgumentError(f"the arguments of {task.name} cannot be kept as JSON: {values!r}")
    try:
        text = json.dumps(document, ensure_ascii=False)
        length = len(text.encode())
    except ValueError as exc:  # half a character, a number of thousands of digits
        said = f"the arguments of {task.name} cannot be kept as JSON: {exc}"
        raise ArgumentError(said) from exc
    if length > _MOST_ARGUMENTS:
        raise ArgumentError(
            f"the arguments of {task.name} are {format_bytes(length)} as JSON; the ledger keeps at "
            f"most {format_bytes(_MOST_ARGUMENTS)}",
            hint="keep the data in a table or a file, and pass its key",
        )
    return text


class Enqueuer:
    """Writes runs into a ledger, and sends their messages to brokers.

    Args:
        tells: Whether the log says, once for each queue and each task, that nobody serves it.
    """

    def __init__(self, ledger: Ledger, settings: Settings, *, tells: bool = False) -> None:
        self.ledger = ledger
        self.executors = ExecutorRegistry(ledger, settings)
        self._ready: set[str] = set()
        self._away_until_s: dict[str, float] = {}
        self._unserved = UnservedRuns(ledger, logger.warning) if tells else None
        self._lock = threading.Lock()

    def enqueue(
        self,
        task: TaskDefinition,
        texts: Sequence[str],
        options: RunOptions = _PLAIN,
        session: Session | None = None,
        *,
        keys: Sequence[str] | None = None,
        run_id: str | None = None,
        by: str | None = None,
    ) -> list[TaskResult[Any]]:
        """Enqueue a run of *task* for each of *texts*.

        Args:
            texts: The arguments, as `arguments_of` returns them.
            session: The runs are part of its transaction.
            keys: The unique key of each; None: that of the options.
            run_id: The id of the first; None: a new one.
            by: Who asks; None: the user of this process.

        Raises:
            ConfigurationError: There is no such executor, or it is not ready.
            DatabaseUnreachable: The ledger's database is away.
        """
        executor = self.executors.of(task)
        self.prepare(executor)
        if self._unserved is not None:
            queue = self._queue(task, options, executor)
            self._unserved.look(executor, queue, task.name)
        new_runs = self._new_runs(task, texts, options, executor, by or requester())
        if keys is not None:
            pairs = zip(new_runs, keys, strict=True)
            new_runs = [each._replace(unique=unique) for each, unique in pairs]
        if run_id is not None:
            new_runs[0] = new_runs[0]._replace(run_id=run_id)
        results: list[TaskResult[Any]] = [
            TaskResult(each.run_id, task.name, lambda: self.ledger) for each in new_runs
        ]
        if session is None:
            self._write(new_runs, results, executor)
            return results
        if (activity := getattr(session, "fsa_activity", None)) is not None:
            activity.wrote = True  # its connection need not be watched for that
        connection = session.connection()
        if not shares(self.ledger, connection.engine.url):
            after_commit(session, lambda: self._write(new_runs, results, executor))
            return results
        inserted = insert_runs_of(self.ledger, connection, new_runs, executor.joined)
        how = inserted[0].how
        if how == "not":
            after_commit(session, lambda: self._write(new_runs, results, executor))
        elif how == "alone" and (own := _own(new_runs, [each.run_id for each in inserted])):
            after_commit(session, lambda: self._publish(own, executor))
        for result, each in zip(results, inserted, strict=True):
            result.is_of(each.run_id)
        return results

    def _new_runs(
        self,
        task: TaskDefinition,
        texts: Sequence[str],
        options: RunOptions,
        executor: Executor,
        by: str | None,
    ) -> list[NewRun]:
        queue = self._queue(task, options, executor)
        priority = task.priority if options.priority is None else options.priority
        # A broker delivers in its own order and at once: what has to wait does so in the ledger.
        waits = options.run_after is not None or priority < 0
        return [
            NewRun.of(
                task.name,
                text,
                executor=executor.name,
                queue=queue,
                dispatched=executor.carries and not waits,
                by=by,
                at_ms=options.at_ms,
                wait_ms=options.wait_ms,
                priority=priority,
                unique=options.unique if isinstance(options.unique, str) else None,
                kept_ms=options.kept_ms,
                key_task=task.oldest_name,
            )
            for text in texts
        ]

    def _queue(self, task: TaskDefinition, options: RunOptions, executor: Executor) -> str | None:
        queue = options.queue or task.queue
        if executor.carries and queue is None:
            return queue_name(task, self.ledger.namespace)
        return queue

    def unserved(self, task: TaskDefinition, options: RunOptions = _PLAIN) -> str | None:
        """What to say where nobody takes such a run; None: somebody does, or may."""
        executor = self.executors.of(task)
        queue = self._queue(task, options, executor)
        return unserved(self.ledger, executor, queue, task.name)

    def prepare(self, executor: Executor) -> None:
        """Check, once, that the ledger and what *executor* needs exist; raises as `enqueue`."""
        if executor.name in self._ready:
            return
        with self._lock, reached(self.ledger):
            self.ledger.create()
            executor.check()
            _ = self.ledger.schema  # looked up here, where no event loop waits
        self._ready.add(executor.name)

    def _write(
        self,
        new_runs: Sequence[NewRun],
        results: Sequence[TaskResult[Any]],
        executor: Executor,
    ) -> None:
        first = new_runs[0]
        joined = executor.joined if first.dispatched else ""
        with reached(self.ledger):
            if len(new_runs) > 1:
                run_ids = write_runs(self.ledger, new_runs, joined)
            else:
                run_ids = [write_run(self.ledger, first, joined)]
        for result, run_id in zip(results, run_ids, strict=True):
            result.is_of(run_id)
        if not joined and (own := _own(new_runs, run_ids)):
            self._publish(own, executor)

    def _publish(self, new_runs: Sequence[NewRun], executor: Executor) -> None:
        """Send their messages; if that fails, the ledger's redelivery sends them later."""
        try:
            self._send(new_runs, executor)
        except BrokerUnreachable as exc:
            run_ids = [each.run_id for each in new_runs]
            what = f"the run {run_ids[0]} is" if len(run_ids) == 1 else f"{len(run_ids)} runs are"
            logger.warning("%s; %s sent later", exc.message.rstrip("."), what)
            with contextlib.suppress(SQLAlchemyError):  # then a little later
                redelivery.mark_unsent(self.ledger, run_ids, _SENT_SOON_MS)

    def _send(self, new_runs: Sequence[NewRun], executor: Executor) -> None:
        if time.monotonic() < self._away_until_s.get(executor.name, float("-inf")):
            raise BrokerUnreachable(f"{executor.name} is away")
        try:
            executor.publish([_message(each) for each in new_runs])
        except BrokerUnreachable:
            self._away_until_s[executor.name] = time.monotonic() + _AWAY_FOR_S
            raise


def _own(new_runs: Sequence[NewRun], run_ids: Sequence[str]) -> list[NewRun]:
    """Those that are to be published: another one may have the key of a run."""
    pairs = zip(new_runs, run_ids, strict=True)
    return [each for each, run_id in pairs if each.dispatched and each.run_id == run_id]


def _message(new_run: NewRun) -> Message:
    assert new_run.queue is not None
    return Message(new_run.run_id, new_run.queue)


def arguments_by_name(
    task: TaskDefinition, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, without those that are injected.

    Raises:
        ArgumentError: The task does not take so many, or one is given twice.
    """
    if not args:
        return dict(kwargs)
    kinds = inspect.signature(task.function).parameters
    names = [
        parameter.name
        for parameter in signature_of(task.function).parameters
        if kinds[parameter.name].kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    if names and kinds[names[-1]].kind is inspect.Parameter.VAR_POSITIONAL:
        rest = len(names) - 1
        args = [*args[:rest], *([list(args[rest:])] if len(args) > rest else ())]
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
        f"{task.name}.using was given {session!r} as its session",
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
        found = _enqueuers.get(key)
        if found is None:
            databases, chosen = databases_here()
            found = _enqueuers[key] = Enqueuer(ledger_of(databases, chosen), chosen, tells=True)
        return found
