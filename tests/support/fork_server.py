"""A Python that has imported the libraries, and forks for each program that a test starts.

Starting `fsa` takes 0.7 s of CPU, nearly all of it the import of FastAPI, SQLAlchemy and Typer; a
fork of an interpreter that has them takes 20 ms. The child is a real process: its own pid, signals,
terminal, environment, directory, standard streams and exit code. It has imported nothing of the
user's, and runs the same entry point.

Run as a script: `fork_server.py ADDRESS`. It ends when its standard input does.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
import termios
import threading
import time
from typing import Any, NoReturn

#: What `fsa` and the apps of the tests import. What is not installed is passed over.
LIBRARIES = (
    "fastapi.testclient",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.mysql",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.ext.asyncio",
    "aiomysql",
    "aiosqlite",
    "alembic.command",
    "alembic.autogenerate",
    "apscheduler.executors.base",
    "apscheduler.schedulers.background",
    "apscheduler.triggers.combining",
    "apscheduler.triggers.cron",
    "apscheduler.triggers.interval",
    "asyncpg",
    "celery",
    "celery.apps.worker",
    "celery.concurrency.thread",
    "concurrent.futures.thread",
    "httpx",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "procrastinate",
    "psycopg",
    "pymysql",
    "pytz",
    "redis",
    "rich.console",
    "rich.progress",
    "rich.table",
    "typer.main",
    "uvicorn.config",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
_FIRST_DESCRIPTOR = 3
_LARGEST_REQUEST = 1 << 20


def main() -> None:
    """Serve; in each child, run the program that was asked for."""
    address = sys.argv[1]
    sys.path.pop(0)
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _import_ours()
    gc.collect()
    gc.freeze()
    request = _serve(address)
    _end(_exit_code_of(request))


def _import_ours() -> None:
    import fastapi_sqlalchemy
    import fsa_cli

    for package in (fastapi_sqlalchemy, fsa_cli):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith(".__main__"):
                with contextlib.suppress(ImportError):
                    importlib.import_module(found.name)


def _serve(address: str) -> dict[str, Any]:
    """Answer until standard input ends. Returns only in a child, with its request."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended, wake_up = socket.socketpair()
    for end in (ended, wake_up):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake_up.fileno(), warn_on_full_buffer=False)
    children: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    for source in (listener, ended, sys.stdin):
        selector.register(source, selectors.EVENT_READ)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                os._exit(0)
            elif key.fileobj is ended:
                with contextlib.suppress(BlockingIOError):
                    ended.recv(4096)
            else:
                connection, _ = listener.accept()
                request = _receive(connection)
                if request is None:
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a terminal, not `nohup`
                    # Here, and not by the garbage collector: the numbers are others' by then.
                    selector.close()
                    for each in (listener, ended, wake_up, connection, *children.values()):
                        each.close()
                    return request
                for descriptor in request["descriptors"]:
                    os.close(descriptor)
                children[pid] = connection
                _tell(connection, pid)
        _reap(children)


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """The request with its three descriptors; None where the test's process has gone."""
    descriptors = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(
        _LARGEST_REQUEST, socket.CMSG_LEN(3 * descriptors.itemsize)
    )
    for _, _, passed in ancillary:
        descriptors.frombytes(passed)
    while data and not data.endswith(b"\n"):
        data += connection.recv(_LARGEST_REQUEST)
    if not data:
        return None
    return {**json.loads(data), "descriptors": list(descriptors)}


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the test's process has gone
        connection.sendall(b"%d\n" % number)


def _reap(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        connection = children.pop(pid)
        _tell(connection, os.waitstatus_to_exitcode(status))
        connection.close()


def _become(request: dict[str, Any]) -> None:
    """Take on all that belongs to a process of one's own, and run the program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request["new_session"]:
        os.setsid()
    for number, descriptor in enumerate(request["descriptors"]):
        os.dup2(descriptor, number)
    os.closerange(_FIRST_DESCRIPTOR, 1024)
    if request["is_terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    unbuffered = "PYTHONUNBUFFERED" in os.environ
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        raw = open(number, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(
            raw,
            errors=errors,
            line_buffering=os.isatty(number) or name == "stderr",
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    setattr(sys, "__stdin__", sys.stdin)  # noqa: B010 - Final, for those who are no interpreter
    _run(request["argv"])


def _run(argv: list[str]) -> NoReturn:
    program, *arguments = argv
    if program == "-m":
        sys.argv = arguments
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        sys.exit(0)
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(program))  # noqa: PTH120
    from fsa_cli.__main__ import main as fsa

    fsa()


def _exit_code_of(request: dict[str, Any]) -> int:
    """Run the program; what the interpreter does with the exception that ends it."""
    try:
        _become(request)
        return 0
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return (exc.code or 0) & 0xFF
        sys.stderr.write(f"{exc.code}\n")
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        return -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1


def _end(code: int) -> NoReturn:
    """End as the interpreter does, but let the kernel free its objects.

    To take them apart one by one would copy every page that is shared with the server: 0.3 s.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


if __name__ == "__main__":
    main()
