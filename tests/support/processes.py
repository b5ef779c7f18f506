"""Fixtures that run real processes: `fsa`, `fsa_process`, `python`, `terminal`, `write_app`."""

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Protocol

import pexpect
import pytest

from support.waiting import DEADLINE_S, wait_until

SCRIPTS = sysconfig.get_path("scripts")


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


def run(
    *argv: str,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    input: str | None = None,  # noqa: A002 - as in subprocess
    timeout: float = DEADLINE_S,
) -> Completed:
    """Run *argv* to its end. Without *input* its standard input is empty, not this terminal."""
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
        raise AssertionError(
            f"{' '.join(argv)} did not end within {timeout:g} s\n{exc.stdout!r}\n{exc.stderr!r}"
        ) from None
    return Completed(done.returncode, done.stdout, done.stderr)


class Process:
    """A process that runs beside the test; what it prints is collected as it comes."""

    def __init__(
        self, *argv: str, cwd: Path | None = None, env: Mapping[str, str | None] | None = None
    ) -> None:
        self.argv = argv
        self._popen = subprocess.Popen(
            argv,
            cwd=cwd,
            env=environment({"PYTHONUNBUFFERED": "1", **(env or {})}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that `kill()` reaches its children too
        )
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._lines
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        with getattr(self._popen, name) as stream:
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
        return Completed(self._popen.returncode, self.stdout, self.stderr)

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


class Run(Protocol):
    def __call__(
        self,
        *args: str,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        input: str | None = None,  # noqa: A002
        timeout: float = DEADLINE_S,
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
    ) -> "pexpect.spawn[str]": ...


@pytest.fixture
def fsa(tmp_path: Path) -> Run:
    """`fsa(*args, cwd=, env=, input=, timeout=)`: the real `fsa`, run to its end.

    It runs in the test's temporary directory where *cwd* is not given.
    """

    def call(*args: str, cwd: Path | None = None, **options: object) -> Completed:
        return run(str(Path(SCRIPTS, "fsa")), *args, cwd=cwd or tmp_path, **options)  # type: ignore[arg-type]

    return call


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
        return start(str(Path(SCRIPTS, "fsa")), *args, cwd=cwd, env=env)

    return call


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[OpenTerminal]:
    """`terminal("fsa", "shell", cwd=, env=, columns=100)`: a pty to type into (pexpect)."""
    with contextlib.ExitStack() as stack:

        def call(
            *argv: str,
            cwd: Path | None = None,
            env: Mapping[str, str | None] | None = None,
            columns: int = 100,
        ) -> "pexpect.spawn[str]":
            child = pexpect.spawn(
                argv[0],
                list(argv[1:]),
                cwd=str(cwd or tmp_path),
                env=environment({"TERM": "xterm-256color", **(env or {})}),
                dimensions=(40, columns),
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
