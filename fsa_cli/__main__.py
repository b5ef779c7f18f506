"""The entry point of `fsa`. Calls of probes and scripts are answered before Typer is imported."""

from __future__ import annotations

import sys

from fsa_cli.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run `fsa` with the command line's arguments, and exit."""
    argv = sys.argv[1:]
    if argv in (["--version"], ["-V"]):
        sys.stdout.write(f"fsa {VERSION}\n")
        sys.exit(0)
    if argv == ["health", "live"]:
        from fsa_cli.processes import heartbeat

        sys.exit(heartbeat.live())
    import gc

    gc.disable()  # until a command begins: imports make next to no garbage
    from fsa_cli.cli import app as typer_side

    code = typer_side.main(argv)
    gc.freeze()  # the interpreter's last collections, of all that the app imported, cost 100 ms
    sys.exit(code)


if __name__ == "__main__":
    main()
