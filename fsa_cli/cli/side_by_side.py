"""Several programs in one terminal: their lines marked, restarted together, ended together.

A program is `python -m MODULE ...`, until its input ends, as it does however the process ends that
has started it.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fsa_cli.project.interpreter import python_command

__all__ = ["SideBySide", "sources"]

_LOOK_EVERY_S = 0.5
_END_S = 30.0
_SKIPPED = {"node_modules", "__pycache__", "site-packages", "build", "dist"}
_MOST_FILES = 5000


def sources(directory: Path) -> dict[str, float]:
    """When each Python file below *directory* was changed, but for hidden folders and venvs."""
    found: dict[str, float] = {}
    for folder, folders, files in os.walk(directory):
        folders[:] = [
            each
            for each in folders
            if each not in _SKIPPED
            and not each.startswith(".")
            and not Path(folder, each, "pyvenv.cfg").is_file()
        ]
        for name in files:
            if name.endswith((".py", ".env", "pyproject.toml")):
                with contextlib.suppress(OSError):
                    path = Path(folder, name)
                    found[str(path)] = path.stat().st_mtime
        if len(found) > _MOST_FILES:
            break
    return found


class SideBySide:
    """Programs that are started, restarted and ended together, with this process at the latest.

    Args:
        programs: Of each, by its name, what follows `python -m`.
        write: Called with a name and a line of its output, from several threads.
        watched: What has a new value when they are to be started again.
    """

    def __init__(
        self,
        programs: Mapping[str, Sequence[str]],
        write: Callable[[str, str], None],
        watched: Callable[[], object],
    ) -> None:
        self._programs = programs
        self._write = write
        self._watched = watched
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._readers: list[threading.Thread] = []
        self._said: set[str] = set()
        self._ending = threading.Event()

    def run(self) -> None:
        """Run them until SIGINT or SIGTERM; a second one kills what is left."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, lambda *_: self._signalled())
        try:
            seen = self._watched()
            self._start()
            while not self._ending.wait(_LOOK_EVERY_S):
                self._say_who_ended()
                now = self._watched()
                if now != seen:
                    seen = now
                    self._write("dev", "a file has changed: everything starts again")
                    self._end()
                    self._start()
            self._end()
        finally:
            for each in self._running.values():
                each.kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self) -> None:
        if self._ending.is_set():
            for each in self._running.values():
                each.kill()
        self._ending.set()

    def _start(self) -> None:
        self._said.clear()
        for name, arguments in self._programs.items():
            process = subprocess.Popen(
                [*python_command("fsa_cli.cli.side_by_side"), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="backslashreplace",
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C is ours: each is told once
            )
            self._running[name] = process
            reader = threading.Thread(target=self._pass_on, args=(name, process), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _pass_on(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._write(name, line.rstrip("\n"))

    def _say_who_ended(self) -> None:
        for name, process in self._running.items():
            code = process.poll()
            if code is not None and name not in self._said:
                self._said.add(name)
                self._write(name, f"ended with {code}; it starts again when a file changes")

    def _end(self) -> None:
        for each in self._running.values():
            if each.poll() is None:
                each.send_signal(signal.SIGINT)
        until_s = time.monotonic() + _END_S
        for each in self._running.values():
            try:
                each.wait(max(until_s - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()
            if each.stdin is not None:
                each.stdin.close()
        for reader in self._readers:  # the last lines; a grandchild may hold the pipe open
            reader.join(_LOOK_EVERY_S)
        self._readers.clear()
        self._running.clear()


def main() -> None:
    """Run the module that is the first argument, until its parent ends."""
    inherited = os.dup(0)
    _detach(0)  # the program's own input has nothing in it
    threading.Thread(target=_end_with, args=(inherited,), daemon=True).start()
    module, *sys.argv[1:] = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with(descriptor: int) -> None:
    """End this process, by force if need be, once *descriptor* has reached its end."""
    while os.read(descriptor, 4096):
        pass
    _detach(1, 2)  # nobody reads its lines any more
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_S)
    os._exit(1)


def _detach(*streams: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for each in streams:
        os.dup2(nothing, each)
    os.close(nothing)
