"""Celery carries the runs: over Redis, RabbitMQ, or whatever Celery knows.

A message is sent when the ledger has committed that the run is dispatched; one that is lost is sent
again. No result backend is needed: the ledger knows how a run ended.

Celery's own worker, started by a team itself, executes the runs too: importing this module gives
each Celery app the task `fsa.run`; its worker must serve the queue "fsa.NAMESPACE"
(`celery worker -Q fsa.shop`), and those that tasks name.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
import threading
import uuid
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import celery  # type: ignore[import-untyped]
from celery import signals
from celery.worker import state  # type: ignore[import-untyped]
from kombu.exceptions import ChannelError
from kombu.transport import TRANSPORT_ALIASES

from fsa_cli.exceptions import BrokerUnreachable, ConfigurationError
from fsa_cli.processes import embedded
from fsa_cli.runs.executor import TASK, Message, OutsideTheLedger, Surroundings, Take
from fsa_cli.terminal.masking import mask
from fsa_cli.terminal.user_code import summarize_error

__all__ = ["Celery", "run"]

_CONNECTED_WITHIN_S = 4

_take: Take = embedded.take


@celery.shared_task(name=TASK, ignore_result=True)  # type: ignore[untyped-decorator]
def run(run_id: str) -> None:
    """Execute a run; this returns when it has ended."""
    _take(run_id).result()


@signals.worker_process_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
def _end(**of_signal: object) -> None:
    """Record the runs of a prefork pool's child before it ends."""
    embedded.end()


class Celery(OutsideTheLedger):
    """Messages of `fsa.run`, by the user's own Celery app or one on `broker_url`."""

    name = "celery"
    carries = True

    def __init__(self, surroundings: Surroundings) -> None:
        self._app = _app_of(surroundings)
        self._url = mask(str(self._app.connection_for_write().as_uri()))

    def publish(self, messages: Sequence[Message]) -> None:
        with self._reached(), self._app.producer_or_acquire() as producer:
            for message in messages:
                self._app.send_task(
                    TASK,
                    kwargs={"run_id": message.run_id},
                    task_id=message.run_id,
                    queue=message.queue,
                    producer=producer,
                    ignore_result=True,
                    retry=False,
                )

    def waiting(self, queue: str) -> int:
        with self._connected() as connection, connection.channel() as channel:
            try:
                return int(channel.queue_declare(queue=queue, passive=True).message_count)
            except ChannelError:  # nobody has sent anything yet
                return 0

    def consume(
        self, take: Take, *, queues: Collection[str], concurrency: int, stop: threading.Event
    ) -> None:
        global _take
        _take = take
        with self._connected():  # without it Celery would try for ever, silently
            pass
        state.should_stop = state.should_terminate = None
        # After a lost connection it would have each thread of the pool wait on the new one for an
        # answer, and RabbitMQ's answers reach the wrong ones: the worker hangs for good.
        self._app.conf.worker_enable_prefetch_count_reduction = False
        watching = threading.Thread(target=_stop_when, args=(stop,), daemon=True)
        watching.start()
        worker = self._app.WorkController(
            # Of two that have one name RabbitMQ lets the first consume; so it would after a lost
            # connection that it does not know to be lost.
            hostname=f"fsa.{uuid.uuid4().hex[:8]}@{socket.gethostname()}",
            pool="threads",
            concurrency=concurrency,
            queues=list(queues),
            prefetch_multiplier=1,
            without_heartbeat=True,
            without_mingle=True,
            without_gossip=True,
            loglevel="WARNING",
        )
        failure = _failure_of(worker)
        if not stop.is_set():
            said = f": {mask(summarize_error(failure))}" if failure is not None else ""
            raise BrokerUnreachable(f"Celery's worker has ended{said} ({self._url})")

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the broker may be away
            self._app.close()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        with self._reached(), self._app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=_CONNECTED_WITHIN_S)
            yield connection

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except self._errors as exc:
            raise BrokerUnreachable(
                f"Celery's broker cannot be reached: {mask(str(exc) or type(exc).__name__)}",
                details=[self._url],
                hint="broker_url in [tool.fsa], or FSA_BROKER_URL",
            ) from exc

    @property
    def _errors(self) -> tuple[type[BaseException], ...]:
        from kombu.exceptions import OperationalError

        connection = self._app.connection_for_write()
        found: tuple[type[BaseException], ...] = connection.connection_errors
        return (OperationalError, OSError, *found, *connection.channel_errors)


def _stop_when(stop: threading.Event) -> None:
    stop.wait()
    state.should_stop = 0  # what its loop looks at: https://docs.celeryq.dev, worker/state.py


def _failure_of(worker: Any) -> BaseException | None:
    """Run *worker* until it ends; what has ended it, which it only logs."""
    failure: BaseException | None = None
    stop = worker.stop

    def stopping(*args: Any, **more: Any) -> None:
        nonlocal failure
        failure = sys.exception()
        stop(*args, **more)

    worker.stop = stopping
    worker.start()
    return failure


def _app_of(surroundings: Surroundings) -> Any:
    settings = surroundings.settings
    if settings.celery_app is not None:
        return _imported(settings.celery_app, f"celery_app, from {settings.sources['celery_app']}")
    if settings.broker_url is None:
        raise ConfigurationError(
            "Celery needs a broker",
            hint='broker_url = "redis://..." or "amqp://..." in [tool.fsa], or FSA_BROKER_URL',
        )
    url = settings.broker_url
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme.partition("+")[0] not in TRANSPORT_ALIASES:
        raise ConfigurationError(
            f"Celery knows no such broker: {mask(url)}",
            details=[f"broker_url, from {settings.sources['broker_url']}"],
            hint='broker_url = "redis://..." or "amqp://..."',
        )
    app = celery.Celery("fsa", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=_CONNECTED_WITHIN_S,
        worker_hijack_root_logger=False,
    )
    if settings.broker_url.startswith("redis"):
        app.conf.broker_transport_options = {
            "socket_connect_timeout": _CONNECTED_WITHIN_S,
            "socket_timeout": 30,
            "socket_keepalive": True,
        }
    return app


def _imported(target: str, source: str) -> Any:
    """The user's own Celery app, `module:attr`."""
    module, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in (attribute or "app").split("."):
            found = getattr(found, part)
    except Exception as exc:
        raise ConfigurationError(
            f"the Celery app {target!r} cannot be imported", details=[summarize_error(exc), source]
        ) from exc
    if not isinstance(found, celery.Celery):
        raise ConfigurationError(f"{target!r} is {found!r}, and no Celery app", details=[source])
    return found
