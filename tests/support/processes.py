"""Fixtures that run real processes: `fsa`, `fsa_process`, `python`, `terminal`, `write_app`.

`fsa` and `python -m MODULE` are forks of an interpreter that has the libraries loaded (see
`support.fork_server`), unless the environment that a test asks for changes the interpreter itself.
`fresh_fsa` starts a new Python, for tests of what starting is.
"""

import atexit
import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any, Protocol

import pexpect
import ptyprocess  # type: ignore[import-untyped]
import pytest

from support import fork_server
from support.waiting import DEADLINE_S, wait_until

SCRIPTS = sysconfig.get_path("scripts")
FSA = str(Path(SCRIPTS, "fsa"))

#: What an interpreter reads when it starts, and no fork can be given later.
READ_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "MALLOC_")


@dataclass(frozen=True)
class Completed:
    """A process that has ended."""

    returncode: int
    stdout: str
    stderr: str


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The environment of a child: this one's, without what would change `fsa`, plus *changes*.

    The scripts of this interpreter come first on PATH; a value of None takes a variable away.
    """
    dropped = ("FSA_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "TERM", "PYTEST")
    env = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    env["PATH"] = SCRIPTS + os.pathsep + env.get("PATH", os.defpath)
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    for key, value in (changes or {}).items():
        if value is None:
            env.pop(key, None)
        else:
            env[key] = value
    return env


def as_a_user(
    command: str, directory: Path, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """`fsa` as somebody who may not write everywhere, as root may."""
    as_user: list[str] = []
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv") or pytest.skip("setpriv is not installed")
        as_user = [setpriv, "--bounding-set=-dac_override,-dac_read_search"]
    argv = [*as_user, FSA, *command.split()]
    return subprocess.run(argv, cwd=directory, env=env, capture_output=True, text=True)


class _ForkServer:
    """The interpreter that forks; one for each test process, started when it is first needed."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="fsa-fork-")
        self.address = str(Path(self._directory, "socket"))
        self._popen = subprocess.Popen(
            [sys.executable, fork_server.__file__, self.address],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self.close)
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line == b"ready\n", f"the fork server did not start: {line!r}"

    def close(self) -> None:
        with self._popen:  # closes its pipes, and waits: it ends at the end of its input
            pass
        shutil.rmtree(self._directory, ignore_errors=True)


_fork_server: _ForkServer | None = None
_fork_server_lock = threading.Lock()


class Forked:
    """A fork of the fork server: what `subprocess.Popen` is for a program that is started."""

    def __init__(
        self,
        argv: tuple[str, ...],
        *,
        cwd: Path | None,
        env: dict[str, str],
        streams: tuple[int, int, int],
        new_session: bool = True,
        is_terminal: bool = False,
    ) -> None:
        global _fork_server
        with _fork_server_lock:
            if _fork_server is None:
                _fork_server = _ForkServer()
        request = {
            "argv": argv[1:] if argv[0] == sys.executable else argv,
            "cwd": str(cwd or Path.cwd()),
            "environment": env,
            "new_session": new_session,
            "is_terminal": is_terminal,
        }
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._answers = b""
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.connect(_fork_server.address)
        data = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(self._connection, [data], streams)
        if sent < len(data):  # nothing is sent too, and the program may have ended already
            self._connection.sendall(data[sent:])
        self.pid = self._next_number()

    def _next_number(self) -> int:
        while b"\n" not in self._answers:
            received = self._connection.recv(64)
            assert received, "the fork server has ended"
            self._answers += received
        number, _, self._answers = self._answers.partition(b"\n")
        return int(number)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or minus the signal; subprocess.TimeoutExpired after *timeout* seconds."""
        with self._lock:
            if self.returncode is None:
                self._connection.settimeout(timeout)
                try:
                    self.returncode = self._next_number()
                except (TimeoutError, BlockingIOError):
                    raise subprocess.TimeoutExpired("fork", timeout or 0.0) from None
                self._connection.close()
            return self.returncode

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.returncode is None and not self._lock.locked():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _can_fork(argv: tuple[str, ...], env: Mapping[str, str | None] | None) -> bool:
    changes = {key for key in env or {} if key != "PYTHONUNBUFFERED"}
    return (argv[0] == FSA or argv[:2] == (sys.executable, "-m")) and not any(
        key.startswith(READ_AT_START) for key in changes
    )


def run(
    *argv: str,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    input: str | None = None,  # noqa: A002 - as in subprocess
    timeout: float = DEADLINE_S,
    fresh: bool = False,
) -> Completed:
    """Run *argv* to its end. Without *input* its standard input is empty, not this terminal.

    Args:
        fresh: A new Python, although a fork of one would do.
    """
    late = f"{' '.join(argv)} did not end within {timeout:g} s"
    if _can_fork(argv, env) and not fresh:
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as given,
            tempfile.TemporaryFile("w+b") as out,
            tempfile.TemporaryFile("w+b") as err,
        ):
            given.write(input or "")
            given.seek(0)
            streams = (given.fileno(), out.fileno(), err.fileno())
            forked = Forked(argv, cwd=cwd, env=environment(env), streams=streams)
            in_time = True
            try:
                forked.wait(timeout)
            except subprocess.TimeoutExpired:
                in_time = False
                os.killpg(forked.pid, signal.SIGKILL)
            returncode = forked.wait()
            printed = []
            for stream in (out, err):
                stream.seek(0)
                printed.append(stream.read().decode().replace("\r\n", "\n"))
            assert in_time, f"{late}\n{printed[0]!r}\n{printed[1]!r}"
            return Completed(returncode, *printed)
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=environment(env),
            input=input or "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise AssertionError(f"{late}\n{exc.stdout!r}\n{exc.stderr!r}") from None
    return Completed(done.returncode, done.stdout, done.stderr)


def run_sh(script: str, directory: Path) -> Completed:
    """Run the lines of a script; each has the time of a command, and none may fail."""
    timeout = DEADLINE_S * len(script.splitlines())
    done = run("bash", "-euo", "pipefail", "-c", script, cwd=directory, timeout=timeout)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done


class Process:
    """A process that runs beside the test; what it prints is collected as it comes."""

    def __init__(
        self,
        *argv: str,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        fresh: bool = False,
    ) -> None:
        self.argv = argv
        self._popen, streams = self._begin(argv, cwd, env, fresh)
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._readers = [
            threading.Thread(target=self._read, args=each, daemon=True)
            for each in zip(self._lines, streams, strict=True)
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _begin(
        argv: tuple[str, ...],
        cwd: Path | None,
        env: Mapping[str, str | None] | None,
        fresh: bool,
    ) -> "tuple[Forked | subprocess.Popen[bytes], tuple[int, int]]":
        """The process in a session of its own, so that `kill()` reaches its children too."""
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        whole = environment({"PYTHONUNBUFFERED": "1", **(env or {})})
        with contextlib.ExitStack() as stack:
            nothing = os.open(os.devnull, os.O_RDONLY)
            for descriptor in (nothing, its_out, its_err):
                stack.callback(os.close, descriptor)
            if _can_fork(argv, env) and not fresh:
                forked = Forked(argv, cwd=cwd, env=whole, streams=(nothing, its_out, its_err))
                return forked, (out, err)
            popen = subprocess.Popen(
                argv,
                cwd=cwd,
                env=whole,
                stdin=nothing,
                stdout=its_out,
                stderr=its_err,
                start_new_session=True,
            )
            return popen, (out, err)

    def _read(self, name: str, descriptor: int) -> None:
        with open(descriptor, encoding="utf-8") as stream:
            for line in stream:
                self._lines[name].append(line)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdout(self) -> str:
        return "".join(self._lines["stdout"])

    @property
    def stderr(self) -> str:
        return "".join(self._lines["stderr"])

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def wait_for(self, text: str, *, within_s: float = DEADLINE_S) -> None:
        """Wait until *text* was printed, on either stream."""

        def printed() -> bool:
            ended = self.returncode is not None
            if ended:
                self._drain()
            if text in self.stdout or text in self.stderr:
                return True
            assert not ended, f"ended with {self.returncode} before it printed {text!r}\n{self}"
            return False

        try:
            wait_until(printed, within_s=within_s)
        except AssertionError as exc:
            raise AssertionError(f"waiting for {text!r}: {exc}\n{self}") from None

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, *, within_s: float = DEADLINE_S) -> Completed:
        """Wait until it ends by itself."""
        try:
            self._popen.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {within_s:g} s\n{self}") from None
        self._drain()
        return Completed(self._popen.wait(), self.stdout, self.stderr)

    def stop(
        self, number: signal.Signals = signal.SIGTERM, *, within_s: float = DEADLINE_S
    ) -> Completed:
        """Send the signal and wait for the end."""
        self.send(number)
        return self.wait(within_s=within_s)

    def kill(self) -> None:
        """End it and its children at once; nothing happens where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self._drain()

    def _drain(self) -> None:
        for reader in self._readers:
            reader.join(10)

    def __str__(self) -> str:
        return f"$ {' '.join(self.argv)}\n{self.stdout}\n--- stderr\n{self.stderr}"


if TYPE_CHECKING:
    _SpawnOfText = pexpect.spawn[str]
else:
    _SpawnOfText = pexpect.spawn


class _Terminal(ptyprocess.PtyProcess):  # type: ignore[misc]
    """A pty whose process is a fork of the fork server, which alone can wait for it."""

    def __init__(self, forked: Forked, descriptor: int) -> None:
        super().__init__(forked.pid, descriptor)
        self._forked = forked

    def isalive(self) -> bool:
        return self._noted(self._forked.poll())

    def wait(self) -> int | None:
        self._noted(self._forked.wait())
        return self.exitstatus

    def _noted(self, returncode: int | None) -> bool:
        if returncode is None:
            return True
        self.terminated = True
        if returncode < 0:
            self.signalstatus = -returncode
        else:
            self.exitstatus = returncode
        return False


class _Spawn(_SpawnOfText):
    """`pexpect.spawn` of a fork."""

    def _spawnpty(
        self,
        args: list[str],
        *,
        env: dict[str, str],
        cwd: str,
        dimensions: tuple[int, int],
        **_: Any,
    ) -> _Terminal:
        ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", *dimensions, 0, 0))
        try:
            forked = Forked(
                tuple(os.fsdecode(each) for each in args),
                cwd=Path(cwd),
                env=env,
                streams=(its, its, its),
                is_terminal=True,
            )
        finally:
            os.close(its)
        return _Terminal(forked, ours)


class Run(Protocol):
    def __call__(
        self,
        *args: str,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        input: str | None = None,  # noqa: A002
        timeout: float = DEADLINE_S,
        fresh: bool = False,
    ) -> Completed: ...


class Start(Protocol):
    def __call__(
        self, *args: str, cwd: Path | None = None, env: Mapping[str, str | None] | None = None
    ) -> Process: ...


class OpenTerminal(Protocol):
    def __call__(
        self,
        *argv: str,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        columns: int = 100,
        rows: int = 40,
    ) -> "pexpect.spawn[str]": ...


@pytest.fixture
def fsa(tmp_path: Path) -> Run:
    """`fsa(*args, cwd=, env=, input=, timeout=)`: the real `fsa`, run to its end.

    It runs in the test's temporary directory where *cwd* is not given.
    """

    def call(*args: str, cwd: Path | None = None, **options: object) -> Completed:
        return run(FSA, *args, cwd=cwd or tmp_path, **options)  # type: ignore[arg-type]

    return call


@pytest.fixture
def fresh_fsa(fsa: Run) -> Run:
    """`fsa`, started by a new Python: for what depends on how an interpreter starts."""
    return partial(fsa, fresh=True)


@pytest.fixture
def python(tmp_path: Path) -> Run:
    """`python(*args, ...)`: this interpreter as a process of its own, as `fsa` is run."""

    def call(*args: str, cwd: Path | None = None, **options: object) -> Completed:
        return run(sys.executable, *args, cwd=cwd or tmp_path, **options)  # type: ignore[arg-type]

    return call


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(*argv, cwd=, env=) -> Process`: any process, running beside the test."""
    with contextlib.ExitStack() as stack:

        def call(
            *argv: str, cwd: Path | None = None, env: Mapping[str, str | None] | None = None
        ) -> Process:
            process = Process(*argv, cwd=cwd or tmp_path, env=env)
            stack.callback(process.kill)
            return process

        yield call


@pytest.fixture
def fsa_process(start: Start) -> Start:
    """`fsa_process("scheduler", "start", cwd=, env=) -> Process`: a real `fsa` beside the test."""

    def call(
        *args: str, cwd: Path | None = None, env: Mapping[str, str | None] | None = None
    ) -> Process:
        return start(FSA, *args, cwd=cwd, env=env)

    return call


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[OpenTerminal]:
    """`terminal("fsa", "shell", cwd=, env=, columns=, rows=)`: a pty to type into (pexpect)."""
    with contextlib.ExitStack() as stack:

        def call(
            *argv: str,
            cwd: Path | None = None,
            env: Mapping[str, str | None] | None = None,
            columns: int = 100,
            rows: int = 40,
        ) -> "pexpect.spawn[str]":
            spawn = _Spawn if argv[0] in ("fsa", FSA) and _can_fork((FSA,), env) else pexpect.spawn
            child = spawn(
                argv[0],
                list(argv[1:]),
                cwd=str(cwd or tmp_path),
                env=environment({"TERM": "xterm-256color", **(env or {})}),
                dimensions=(rows, columns),
                encoding="utf-8",
                timeout=DEADLINE_S,
            )
            stack.callback(child.close, force=True)
            return child

        yield call


def write_files(directory: Path, files: Mapping[str, str] | None = None, /, **modules: str) -> Path:
    """Lay a project: `write_files(tmp_path, {"pyproject.toml": ...}, main="...")` writes `main.py`.

    Sources may be indented as the test is. Returns *directory*.
    """
    sources = {**(files or {}), **{f"{name}.py": source for name, source in modules.items()}}
    for name, source in sources.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source))
    return directory


@pytest.fixture
def write_app() -> Callable[..., Path]:
    """`write_app(tmp_path, {"pkg/app.py": ...}, main="...")` lays a project directory."""
    return write_files
