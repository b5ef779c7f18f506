"""The common options, which every command has: `fsa` is the function that declares them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fsa_cli.cli.flags import COMMON, FROM_SETTINGS
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.version import VERSION

__all__ = ["fsa"]


def _note(context: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """Note a common flag that was given; the later, inner one wins."""
    fsa: Fsa | None = context.obj
    name = param.name
    if fsa is None or name is None or value in (None, False, 0):
        return value
    source = context.get_parameter_source(name)
    given = source is not None and source.name == "COMMANDLINE"
    # The settings read the environment themselves: they say which variable a value is from.
    if given or (name not in FROM_SETTINGS and getattr(fsa.flags, name) is None):
        fsa.set(**{name: value})
    return value


def _version(value: bool) -> None:
    if value:
        typer.echo(f"fsa {VERSION}")
        raise typer.Exit


def _option(name: str, *, help: str, **more: Any) -> Any:  # noqa: A002
    return option(
        "",
        *COMMON[name],
        help=help,
        callback=_note,
        expose_value=False,
        is_eager=True,
        **more,
    )


def fsa(
    app: Annotated[
        str | None, _option("app", help="The FastAPI app.", metavar="MODULE:ATTR")
    ] = None,
    env_file: Annotated[
        Path | None,
        _option("env_file", help="Variables, instead of the nearest .env.", metavar="FILE"),
    ] = None,
    no_env_file: Annotated[
        bool, _option("no_env_file", help="No variables of a .env file.")
    ] = False,
    database: Annotated[
        str | None,
        _option("database", help="Which of the app's databases.", metavar="NAME"),
    ] = None,
    env: Annotated[
        str | None, _option("env", help="A [tool.fsa.env.NAME].", metavar="NAME")
    ] = None,
    verbose: Annotated[
        int, _option("verbose", help="Say more.", count=True, show_default=False)
    ] = 0,
    quiet: Annotated[bool, _option("quiet", help="Say only what went wrong.")] = False,
    json: Annotated[bool, _option("json", help="One JSON document on stdout.")] = False,
    no_color: Annotated[bool, _option("no_color", help="No colors.")] = False,
    yes: Annotated[
        bool, _option("yes", help="Do not ask.", envvar=None, show_envvar=False)
    ] = False,
    traceback: Annotated[bool, _option("traceback", help="Errors in full.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "-V",
            "--version",
            help="The version.",
            callback=_version,
            is_eager=True,
            expose_value=False,
        ),
    ] = False,
) -> None:
    """Tasks, shells, checks and the schedule of a FastAPI app, on its database.

    \b
      fsa run-task count_users
      fsa shell -c "print(session.query(User).count())"
      fsa scheduler start
    """
