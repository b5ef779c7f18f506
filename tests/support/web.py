"""Fixtures that serve an app: `serve` in a thread of this process, `serve_process` in its own."""

import contextlib
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from support.processes import Process, Start
from support.waiting import DEADLINE_S, wait_until


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, the only loop that SQLAlchemy's async side knows."""
    return "asyncio"


def add_http_middleware(app: FastAPI) -> None:
    """Add a middleware of Starlette's BaseHTTPMiddleware, which changes nothing."""

    @app.middleware("http")
    async def pass_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)


@dataclass
class Served:
    """An app behind a real uvicorn."""

    base_url: str
    server: uvicorn.Server


@contextmanager
def serve_app(app: Any, **options: Any) -> Iterator[Served]:
    """Serve *app* in a thread on a free port of 127.0.0.1; *options* are `uvicorn.Config`'s.

    Raises AssertionError where the app's start-up fails or the server does not stop.
    """
    settings: dict[str, Any] = {"log_level": "warning", "timeout_graceful_shutdown": 10, **options}
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    listener = socket.create_server(("127.0.0.1", 0))
    failure: list[BaseException] = []

    def target() -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as exc:
            failure.append(exc)

    thread = threading.Thread(target=target, name="uvicorn", daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "uvicorn has started")
        assert server.started, f"the server did not start: {failure}"
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", server)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive(), "the server did not stop within 60 s"
    assert not failure, f"the server failed: {failure}"


@pytest.fixture
def serve() -> Callable[..., AbstractContextManager[Served]]:
    """`with serve(app) as served:` gives `served.base_url`; stopped at the end of the block."""
    return serve_app


Serve = Callable[..., AbstractContextManager[Served]]


@contextmanager
def client_of(serve: Serve, app: Any) -> Iterator[httpx.Client]:
    """A client of *app* behind a real uvicorn, which logs nothing of what the app raises.

    Every request has a connection of its own: uvicorn closes one whose request has raised, and
    may do so when the next request is under way.
    """
    with (
        serve(app, log_level="critical") as served,
        httpx.Client(
            base_url=served.base_url, timeout=DEADLINE_S, headers={"connection": "close"}
        ) as client,
    ):
        yield client


@dataclass
class ServedProcess:
    """An app behind a uvicorn process of its own."""

    base_url: str
    process: Process


@pytest.fixture
def serve_process(start: Start) -> Callable[..., AbstractContextManager[ServedProcess]]:
    """`with serve_process("module:app", cwd=, env=) as served:`: a real uvicorn process."""

    @contextmanager
    def call(
        app: str,
        *options: str,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> Iterator[ServedProcess]:
        process = start(
            sys.executable, "-m", "uvicorn", app, "--port", "0", *options, cwd=cwd, env=env
        )
        try:
            process.wait_for("Uvicorn running on")
            match = re.search(r"Uvicorn running on (http://\S+)", process.stderr)
            assert match, process
            yield ServedProcess(match[1], process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.stop()

    return call
