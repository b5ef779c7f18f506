"""`fsa console`."""

from __future__ import annotations

from typing import Annotated

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.exceptions import ConfigurationError


def console(
    context: typer.Context,
    port: Annotated[
        int,
        option("console", "--port", help="0: any that is free.", min=0, max=65535, metavar="N"),
    ] = 8765,
    read_only: Annotated[
        bool, option("console", "--read-only", help="Pages to look at, and nothing to press.")
    ] = False,
) -> None:
    """Serve the console on 127.0.0.1: what ran, runs, waits and comes, in a browser.

    It answers this machine alone, and no proxy; the app is imported and not touched. In the app
    itself: app.include_router(console.router(access=...)).

    \b
      fsa console
      fsa console --port 9000 --read-only
    """
    fsa = Fsa.of(context)
    fsa.load()
    try:
        from fsa_cli.console.hosting import host
    except ImportError as exc:
        raise ConfigurationError(
            f"the console needs {exc.name}", hint="pip install 'fastapi-sqlalchemy[console]'"
        ) from exc

    def introduce(address: str) -> None:
        fsa.output.say(f"the console is at {address}, for this machine alone. Ctrl-C stops it.")

    host(port, read_only=read_only, introduce=introduce)
