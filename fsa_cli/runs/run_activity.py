"""What a run that goes on does, and whom it waits for in the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError

from fsa_cli.database.connections import connected
from fsa_cli.database.dialects import Blocker, ServerSession, dialect_of
from fsa_cli.ledger.activity import activities
from fsa_cli.ledger.store import Ledger
from fsa_cli.runs.run_pages import RunLine
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.formatting import format_span
from fsa_cli.terminal.masking import mask_within

if TYPE_CHECKING:
    from fastapi_sqlalchemy import Database

__all__ = ["Doing", "doing"]

_STATEMENT = 200


@dataclass(frozen=True)
class Doing:
    """What a run does.

    Attributes:
        place: The line that it is in; "" if that is not known.
        sessions: Its sessions in the database that execute a statement now.
        cures: The commands that end the sessions which keep it waiting.
    """

    place: str = ""
    sessions: tuple[ServerSession, ...] = ()
    cures: tuple[str, ...] = ()

    @property
    def sends(self) -> str:
        """The statement, and for how long."""
        return "; ".join(
            f"{_one_line(each.statement)}  (for {_span(each.for_s)})" for each in self.sessions
        )

    @property
    def waits_for(self) -> str:
        """Who holds the lock that it waits for."""
        return "; ".join(_held_by(one) for each in self.sessions for one in each.blockers)


def doing(
    ledger: Ledger, runs: Sequence[Row[Any] | RunLine], databases: Mapping[str, Database]
) -> dict[str, Doing]:
    """What is known of *runs*, which go on, by their ids."""
    known = activities(ledger, [each.id for each in runs]) if runs else {}
    ids: dict[str, set[int]] = {}
    of_run: dict[str, str] = {}
    for run in runs:
        if (row := known.get(run.id)) is not None:
            task = registry.get(run.task)
            name = (task and task.database) or "default"
            ids.setdefault(name, set()).update(_numbers(row.sessions))
            of_run[run.id] = name
    found = {
        (name, session.id): session
        for name, wanted in ids.items()
        if wanted and name in databases
        for session in _sessions(databases[name], sorted(wanted))
    }
    done = {}
    for run_id, row in known.items():
        name = of_run[run_id]
        sessions = tuple(
            found[name, each] for each in _numbers(row.sessions) if (name, each) in found
        )
        cures = dict.fromkeys(
            _end_session(name, databases[name], one.id)
            for each in sessions
            for one in each.blockers
        )
        done[run_id] = Doing(row.place, sessions, tuple(filter(None, cures)))
    return done


def _sessions(database: Database, ids: Sequence[int]) -> Iterator[ServerSession]:
    """What these sessions do; none where the server tells nobody."""
    if database.url is None:
        return
    dialect = dialect_of(database.url.get_backend_name())
    try:
        yield from connected(database, lambda connection: dialect.sessions(connection, ids))
    except SQLAlchemyError:
        return


def _held_by(one: Blocker) -> str:
    state = "" if one.state == "unknown" else f", {one.state} for {_span(one.for_s)}"
    sent = f"; it sent {_one_line(one.statement)}" if one.statement else ""
    return f"a lock of session {one.id}{state}: {one.who}{sent}"


def _end_session(name: str, database: Database, session: int) -> str:
    """The command that ends a session; "" if none is known."""
    end = dialect_of(database.url.get_backend_name()).end_session if database.url else ""
    named = "" if name == "default" else f"-d {name} "
    return f"fsa {named}db shell -- {end.format(id=session)}" if end else ""


def _numbers(text: str) -> list[int]:
    """The sessions of a row; others can write these rows too."""
    return [int(each) for each in text.split() if each.isascii() and each.isdigit()]


def _one_line(statement: str) -> str:
    return mask_within(" ".join(statement.split()), _STATEMENT)


def _span(seconds: float) -> str:
    return format_span(seconds * 1000)
