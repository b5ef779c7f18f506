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

# Those that say that this process itself has failed, those of a terminal's background, and those
# that nobody can block.
_OWN = {signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT}
_OWN |= {signal.SIGTRAP, signal.SIGSYS, signal.SIGTTIN, signal.SIGTTOU}
_OWN |= {signal.SIGKILL, signal.SIGSTOP}


def fork_from_init() -> None:
    """Return in a child, which is in no respect PID 1; this process ends as the child does."""
    passed_on = signal.valid_signals() - _OWN
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
    with contextlib.suppress(ChildProcessError):  # there is none any more
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if ended[0] == child:
                found = ended[1]
    return found


def _take_terminal() -> None:
    """A group of its own, in the foreground: Ctrl-C comes once, and not by way of PID 1 again."""
    os.setpgid(0, 0)
    if not os.isatty(0):
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # another session's terminal
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, before)
