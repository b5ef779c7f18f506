"""The entry point of `fsa`. What a probe or a script calls often is answered before Typer."""

from __future__ import annotations

import sys

from fsa_cli.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run `fsa` with the words of the command line, and exit."""
    words = sys.argv[1:]
    if words in (["--version"], ["-V"]):
        sys.stdout.write(f"fsa {VERSION}\n")
        sys.exit(0)
    if words == ["health", "live"]:
        from fsa_cli.processes import heartbeat

        sys.exit(heartbeat.live())
    import gc

    from fsa_cli.cli import app as typer_side

    code = typer_side.main(words)
    gc.freeze()  # the interpreter's last collections, of all that the app imported, cost 100 ms
    sys.exit(code)


if __name__ == "__main__":
    main()
