"""`fsa console`: the console beside the app, which is not touched, for this machine alone."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request

from fsa_cli.console.access import ACTIONS, Access, is_from_here
from fsa_cli.console.routes import router
from fsa_cli.exceptions import UsageError
from fsa_cli.runs.requester import requester

__all__ = ["host"]

_ADDRESS = "127.0.0.1"
_POLL_S = 0.5


def host(port: int, *, read_only: bool, introduce: Callable[[str], None]) -> None:
    """Serve the console until SIGINT or SIGTERM.

    Args:
        port: 0: any that is free.
        introduce: Is told its address.

    Raises:
        UsageError: The port is taken.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    actions: frozenset[str] = frozenset() if read_only else frozenset(ACTIONS)
    name = requester()

    def here(request: Request) -> Access | None:
        return Access(actions, name) if is_from_here(request) else None

    app.include_router(router(access=here))
    with _listening(port) as listener:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        # In a thread it leaves signals alone: they end this function, not the process.
        thread = threading.Thread(target=server.run, args=([listener],), name="console")
        asked = threading.Event()
        with _signals(asked):
            thread.start()
            introduce(f"http://{_ADDRESS}:{listener.getsockname()[1]}/")
            while not asked.wait(_POLL_S) and thread.is_alive():
                pass
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server((_ADDRESS, port))
    except OSError as exc:
        raise UsageError(
            f"the port {port} cannot be taken: {exc.strerror}", hint="--port N, or --port 0"
        ) from exc
    with listener:
        yield listener


@contextlib.contextmanager
def _signals(asked: threading.Event) -> Iterator[None]:
    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
