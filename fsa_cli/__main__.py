"""The entry point of `fsa`. Calls of probes and scripts are answered before Typer is imported."""

# ruff: noqa: SIM105, SIM115

from __future__ import annotations

import os
import sys

from fsa_cli.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn, TextIO

_CLOSED_PIPE = 141


def main() -> NoReturn:
    """Run `fsa` with the command line's arguments, and exit."""
    _open_closed_streams()
    if os.getpid() == 1:
        from fsa_cli.cli.init_process import fork_from_init

        fork_from_init()
    code = 0
    try:
        code = _answer(sys.argv[1:])
        _flush(sys.stdout)
    except BrokenPipeError:
        code = code or _CLOSED_PIPE
    except OSError as exc:
        if code == 0:
            code = 1
            _tell(f"error: the output cannot be written: {exc.strerror}\n")
    _drop_what_cannot_be_written()
    sys.exit(code)


def _answer(argv: Sequence[str]) -> int:
    if argv in (["--version"], ["-V"]):
        sys.stdout.write(f"fsa {VERSION}\n")
        return 0
    if argv == ["health", "live"]:
        from fsa_cli.processes import heartbeat

        return heartbeat.live()
    import gc

    gc.disable()  # until a command begins: imports make next to no garbage
    from fsa_cli.cli import app as typer_side
    from fsa_cli.cli.fsa_context import Fsa

    fsa = Fsa()
    code = typer_side.main(argv, fsa)
    if fsa.tell_of_left is not None:
        from fsa_cli.cli.process_end import end_soon

        end_soon(code, fsa.tell_of_left)
    gc.freeze()  # the interpreter's last collections, of all that the app imported, cost 100 ms
    return code


def _open_closed_streams() -> None:
    """Open /dev/null for each standard stream that is closed.

    A connection would get its descriptor, and what a child process or a C library prints.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except (AttributeError, ValueError):  # the app's own thing in its place, or closed by the app
        pass


def _tell(text: str) -> None:
    try:
        sys.stderr.write(text)
    except (OSError, AttributeError, ValueError):
        pass


def _drop_what_cannot_be_written() -> None:
    """The interpreter's own flush at the end would complain of it, and change the exit code."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        try:
            getattr(sys, name).flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        except (AttributeError, ValueError):
            setattr(sys, name, None)


if __name__ == "__main__":
    main()
