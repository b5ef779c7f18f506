"""The engines that carry runs: `@engines(...)` gives a test each of them as `engine`.

Redis is a process of the test's own, which keeps nothing when it ends. RabbitMQ is the server that
`FSA_TEST_AMQP_URL` names, else a local one; a proxy stands in front of it, and the queue is the
test's own.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import celery  # type: ignore[import-untyped]
import pytest
import redis
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from support.backends import Backend
from support.databases import found, skip
from support.proxy import Proxy
from support.replicas import Replicas
from support.waiting import wait_until

ENGINES = ("procrastinate", "redis", "rabbitmq")


def engines(*short: str, of: Sequence[str] = ENGINES) -> pytest.MarkDecorator:
    """The test is made with each engine; with those that are not in *short*, only in the long form.

    Args:
        of: Those there are.
    """
    return pytest.mark.parametrize(
        "engine",
        [pytest.param(name, marks=[] if name in short else pytest.mark.long) for name in of],
        indirect=True,
    )


#: For an app: messages that were lost are sent again after 4 s, not 30.
SOON = """
from fsa_cli.ledger import claim_due, claim_queued, enqueue as new_runs, redelivery

claim_due.SENT_AGAIN_MS = claim_queued.SENT_AGAIN_MS = 4000
new_runs.SENT_AGAIN_MS = redelivery.SENT_AGAIN_MS = 4000
"""

_TASK = "fsa.run"
_LOCAL_AMQP = "amqp://guest:guest@127.0.0.1:5672//"


class Engine(ABC):
    """What carries the runs of one test."""

    name: ClassVar[str]
    executor: ClassVar[str]
    queue = "fsa"

    @property
    def environment(self) -> Mapping[str, str]:
        """What `fsa` must be told."""
        return {"FSA_EXECUTOR": self.executor}

    @abstractmethod
    def deliver(self, run_ids: Sequence[str]) -> None:
        """Send messages of these runs, which have been sent already."""

    @abstractmethod
    def lose(self) -> int:
        """Drop the messages that wait; how many there were."""


class Broker(Engine):
    """A server of its own for the messages."""

    executor = "celery"
    url: str

    @property
    def environment(self) -> Mapping[str, str]:
        return {**super().environment, "FSA_BROKER_URL": self.url}

    def deliver(self, run_ids: Sequence[str]) -> None:
        with celery.Celery("tests", broker=self.direct_url, set_as_current=False) as app:
            for run_id in run_ids:
                app.send_task(_TASK, kwargs={"run_id": run_id}, queue=self.queue)

    @property
    def direct_url(self) -> str:
        return self.url

    @abstractmethod
    def leave(self) -> None:
        """From now on it is away, and every connection to it is gone."""

    @abstractmethod
    def come_back(self) -> None: ...


class Procrastinate(Engine):
    """In the test's database."""

    name = executor = "procrastinate"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def deliver(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            self._backend.execute(
                "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES"
                f""" ('{self.queue}', '{_TASK}', '{{"run_id": "{run_id}"}}')"""
            )

    def lose(self) -> int:
        sql = "DELETE FROM procrastinate_jobs WHERE status = 'todo' RETURNING id"
        return len(self._backend.rows(sql))


class Redis(Broker):
    """A `redis-server` that writes nothing to disk: what it holds is lost when it ends."""

    name = "redis"

    def __init__(self, program: str, directory: Path) -> None:
        self._program = program
        self._directory = directory
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port: int = listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        self.come_back()

    def leave(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def come_back(self) -> None:
        self._process = subprocess.Popen(
            [self._program, "--port", str(self._port), "--save", "", "--appendonly", "no"],
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers, "Redis answers")

    def lose(self) -> int:
        with self._client() as client, client.pipeline() as pipeline:
            pipeline.llen(self.queue)
            pipeline.delete(self.queue)
            return int(pipeline.execute()[0])

    def version(self) -> str:
        with self._client() as client:
            info: Any = client.info("server")
            return str(info["redis_version"])

    def _answers(self) -> bool:
        try:
            with self._client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def _client(self) -> redis.Redis:
        return redis.Redis(port=self._port, socket_timeout=10)


class RabbitMQ(Broker):
    """A queue of the test's own, behind a proxy."""

    name = "rabbitmq"

    def __init__(self, url: str) -> None:
        self.queue = f"fsa_test_{uuid4().hex}"
        self._direct_url = url
        with self._connection() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            properties: Any = connection.connection.server_properties
            self.version = str(properties["version"])
            parts = connection.as_uri(include_password=True).split("@")
            self.proxy = Proxy((connection.hostname, connection.port or 5672))
        _, path = parts[-1].split("/", 1)
        self.url = f"{'@'.join(parts[:-1])}@127.0.0.1:{self.proxy.port}/{path}"

    @property
    def direct_url(self) -> str:
        return self._direct_url

    def leave(self) -> None:
        self.proxy.away.set()
        self.proxy.drop_all()

    def come_back(self) -> None:
        self.proxy.away.clear()

    def lose(self) -> int:
        with self._connection() as connection, connection.channel() as channel:
            return int(channel.queue_purge(self.queue))

    @contextmanager
    def held(self) -> Iterator[None]:
        """While inside, the queue is another connection's alone, which has declared it first."""
        with self._connection() as connection, connection.channel() as channel:
            channel.queue_declare(self.queue, exclusive=True, durable=True, auto_delete=False)
            yield

    def close(self) -> None:
        self.proxy.close()
        with self._connection() as connection, connection.channel() as channel:
            channel.queue_delete(self.queue)
            channel.exchange_delete(self.queue)

    def _connection(self) -> Any:
        return Connection(self._direct_url, connect_timeout=5)  # type: ignore[no-untyped-call]


@contextmanager
def _redis(directory: Path) -> Iterator[Redis]:
    program = shutil.which("redis-server")
    if program is None:
        skip("redis", "redis-server is not on the PATH")
    server = Redis(program, directory)
    try:
        found["redis"] = f"{server.version()} (started here)"
        yield server
    finally:
        server.leave()


@contextmanager
def _rabbitmq() -> Iterator[RabbitMQ]:
    url, where = os.environ.get("FSA_TEST_AMQP_URL"), "FSA_TEST_AMQP_URL"
    try:
        server = RabbitMQ(url or _LOCAL_AMQP)
    except (OperationalError, OSError) as exc:
        if url:
            raise
        skip("rabbitmq", f"no server at 127.0.0.1:5672, and no FSA_TEST_AMQP_URL ({exc})")
    found["rabbitmq"] = f"{server.version} ({where if url else '127.0.0.1:5672'})"
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest, postgresql: Backend, tmp_path: Path) -> Iterator[Engine]:
    """The engine that the test is parametrized with; its ledger is in `postgresql`."""
    if request.param == "procrastinate":
        yield Procrastinate(postgresql)
    elif request.param == "redis":
        with _redis(tmp_path) as server:
            yield server
    else:
        with _rabbitmq() as server:
            yield server


class Repeating:
    """Delivers messages again, of runs that wait, go on or have ended, while it lasts."""

    def __init__(self, replicas: Replicas, engine: Engine) -> None:
        self.delivered = 0
        self._replicas = replicas
        self._engine = engine
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "Repeating":
        self._thread.start()
        return self

    def __exit__(self, *of_exception: object) -> None:
        self._ended.set()
        self._thread.join(20)

    def _serve(self) -> None:
        while not self._ended.wait(0.05):
            rows = self._replicas.ledger.rows(
                "SELECT id FROM fsa_run ORDER BY queued_ms DESC LIMIT 20"
            )
            with contextlib.suppress(OperationalError):
                self._engine.deliver([run for (run,) in rows])
                self.delivered += len(rows)


@contextmanager
def standing_still(replicas: Replicas, command: str) -> Iterator[None]:
    """While inside, the processes of *command* do nothing."""
    stopped = replicas.up(command)
    for each in stopped:
        each.process.send(signal.SIGSTOP)
    try:
        time.sleep(0.05)
        yield
    finally:
        for each in stopped:
            each.process.send(signal.SIGCONT)
