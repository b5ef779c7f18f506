"""Ask a person to agree to an action that cannot be undone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fsa_cli.exceptions import Refused
from fsa_cli.project.environments import Environment
from fsa_cli.terminal.escaping import escape_terminal
from fsa_cli.terminal.folding import is_terminal

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database


def confirm(
    environment: Environment,
    action: str,
    database: Database,
    *,
    typed: str | None = None,
    yes: bool = False,
) -> None:
    """Ask a person to agree to *action*, which cannot be undone. Returns if they do.

    In a protected environment they type the database's name, or give it with `--confirm`; `--yes`
    is not enough there. Elsewhere they say y, or give `--yes` or `--confirm`.

    Args:
        action: What would be done, as `drop the table users`.
        typed: The value of `--confirm`.

    Raises:
        Refused: They do not, or there is no terminal to ask at.
    """
    from fsa_cli.database.identity import database_name

    name = database_name(database.url)
    where = f" in {environment.name}" if environment.name else ""
    if typed is not None:
        _compare(typed, name, action)
    elif environment.protected:
        if not _can_ask():
            raise Refused(
                f"{action}: {environment.name} is protected, and here is no terminal to ask at",
                details=["--yes is not enough there"] if yes else [],
                hint=f"--confirm {name}",
            )
        question = f"{action}{where}? Type the database's name ({name}) to go on: "
        _compare(_ask(question), name, action)
    elif not yes:
        if not _can_ask():
            raise Refused(
                f"{action}: here is no terminal to ask at", hint=f"--yes, or --confirm {name}"
            )
        if _ask(f"{action}{where}, database {name}? [y/N] ").lower() not in ("y", "yes"):
            raise Refused("nothing was done: the answer was not y")


def _can_ask() -> bool:
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def _ask(question: str) -> str:
    sys.stderr.write(escape_terminal(question))
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def _compare(typed: str, name: str, action: str) -> None:
    if typed != name:
        raise Refused(
            f"{action}: the database's name is {name!r}, not {typed!r}", hint=f"--confirm {name}"
        )
