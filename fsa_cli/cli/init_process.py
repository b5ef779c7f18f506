"""What PID 1 of a container has to do: pass signals on, and reap the processes of others.

The kernel gives PID 1 each process whose parent has ended (what a shell pipeline leaves when it is
killed), and sends it no signal that it does not handle. So the process that is PID 1 does only
this, and a child is `fsa`, as under `docker run --init`:
https://docs.docker.com/reference/cli/docker/container/run/#init
"""

from __future__ import annotations

import contextlib
import os
import signal

__all__ = ["fork_from_init"]

# Those that say that this process itself has failed, and those of a terminal's background.
_OWN = {"SIGFPE", "SIGILL", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGTRAP", "SIGSYS"}
_OWN |= {"SIGTTIN", "SIGTTOU", "SIGKILL", "SIGSTOP"}


def fork_from_init() -> None:
    """Return in a child, which is in no respect PID 1; this process ends as the child does."""
    passed_on = {each for each in signal.valid_signals() if _name(each) not in _OWN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # they wait for `sigwait`
    child = os.fork()
    if child == 0:
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(passed_on)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        elif (status := _reap(child)) is not None:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _reap(child: int) -> int | None:
    """Reap all that have ended; the child's status if it is one of them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status


def _take_terminal() -> None:
    """A group of its own, in the foreground: Ctrl-C comes once, and not by way of PID 1 again."""
    os.setpgid(0, 0)
    if not os.isatty(0):
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        os.tcsetpgrp(0, os.getpgrp())
    except OSError:  # another session's terminal
        pass
    finally:
        signal.signal(signal.SIGTTOU, before)


def _name(number: int) -> str:
    return getattr(number, "name", "")
