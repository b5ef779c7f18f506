"""The common options of `fsa db`, and its confirmations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fsa_cli.cli.context import Fsa


def option(command: str, *spellings: str, help: str, **more: Any) -> Any:  # noqa: A002
    """An option of `fsa db COMMAND`, with its environment variable."""
    name = spellings[-1].lstrip("-").replace("-", "_")
    variable = f"FSA_DB_{command}_{name}".upper()
    return typer.Option(*spellings, help=help, envvar=variable, show_envvar=True, **more)


def confirm_option(command: str) -> Any:
    """`--confirm DATABASE`, for `agree`."""
    return option(
        command,
        "--confirm",
        help="The database's name: agrees in a protected environment.",
        metavar="DATABASE",
    )


def agree(fsa: Fsa, action: str, confirmed: str | None, *, destructive: bool = False) -> None:
    """Ask a person to agree to *action*, if the environment is protected or it destroys data.

    Args:
        action: What would be done, as `drop the table users`.
        confirmed: The value of `--confirm`; if it is given, it has to be right.

    Raises:
        Refused: They do not, or nobody can be asked.
    """
    from fsa_cli.project import environments

    database = fsa.load().database(fsa.settings.database)
    protected = environments.of(fsa.settings, [database]).protected
    if destructive or protected or confirmed is not None:
        fsa.confirm(action, database, typed=confirmed)
