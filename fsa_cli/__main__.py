"""The entry point of `fsa`. What a probe or a script calls often is answered before Typer."""

import sys
from typing import NoReturn

from fsa_cli.version import VERSION


def main() -> NoReturn:
    """Run `fsa` with the words of the command line, and exit."""
    words = sys.argv[1:]
    if words in (["--version"], ["-V"]):
        sys.stdout.write(f"fsa {VERSION}\n")
        sys.exit(0)
    if words == ["health", "live"]:
        from fsa_cli import heartbeat

        sys.exit(heartbeat.live())
    from fsa_cli import main as typer_side

    sys.exit(typer_side.main(words))


if __name__ == "__main__":
    main()
