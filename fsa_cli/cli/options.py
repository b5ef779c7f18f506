"""Options with their environment variables; `--confirm`, and asking a person to agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fsa_cli.cli.fsa_context import Fsa


def option(command: str, *spellings: str, help: str, **more: Any) -> Any:  # noqa: A002
    """An option of `fsa COMMAND`, with its environment variable.

    Args:
        command: `db query` has FSA_DB_QUERY_CSV for `--csv`; "" is fsa itself.
        spellings: The last one names the variable.
    """
    name = spellings[-1].partition("/")[0].lstrip("-")
    variable = "_".join(["FSA", *command.split(), name]).replace("-", "_").upper()
    variables = {"envvar": variable, "show_envvar": True}
    return typer.Option(*spellings, help=help, **{**variables, **more})


def confirm_option(command: str) -> Any:
    """`--confirm DATABASE` of `fsa COMMAND`, for `agree`."""
    return option(
        command,
        "--confirm",
        help="The database's name: agrees in a protected environment.",
        metavar="DATABASE",
    )


def run_after_option(command: str) -> Any:
    """`--run-after`, of `fsa COMMAND` that enqueues a run."""
    told = "Not before then: 10m from now, or an instant (UTC)."
    return option(command, "--run-after", help=told, metavar="WHEN")


def priority_option(command: str) -> Any:
    """`--priority`, of `fsa COMMAND` that enqueues a run."""
    told = "-100 to 100: of the runs that wait the highest goes first."
    return option(command, "--priority", help=told, metavar="N")


def unique_option(command: str) -> Any:
    """`--unique`, of `fsa COMMAND` that enqueues a run."""
    told = "Not while one with this key waits or runs: prints its id."
    return option(command, "--unique", help=told, metavar="KEY")


def agree(fsa: Fsa, action: str, confirmed: str | None, *, destructive: bool = False) -> None:
    """Ask a person to agree to *action*, if the environment is protected or it destroys data.

    Args:
        action: What would be done, as `drop the table users`.
        confirmed: The value of `--confirm`; if it is given, it has to be right.

    Raises:
        Refused: They do not, or nobody can be asked.
    """
    from fsa_cli.project import environments

    database = fsa.database
    protected = environments.of(fsa.settings, [database]).protected
    if destructive or protected or confirmed is not None:
        fsa.confirm(action, database, typed=confirmed)
