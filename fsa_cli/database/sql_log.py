"""Show the SQL that is sent, with its parameters and duration, and the ends of transactions."""

from __future__ import annotations

import time
from typing import Any

from fsa_cli.terminal.masking import mask_head
from fsa_cli.terminal.output import Output

_LONGEST_PARAMETERS = 300
_MAX_STATEMENT_LENGTH = 32 * 1024
_STARTED = "fsa_echo_started"


def start(output: Output) -> None:
    """From now on, write every statement of every engine to stderr, masked."""
    from sqlalchemy import Connection, Engine, event

    def say(text: str) -> None:
        output.tell(f"sql  {text}")

    def before(
        connection: Connection,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        many: bool,
    ) -> None:
        lines = mask_head(statement, _MAX_STATEMENT_LENGTH).strip().splitlines()
        if len(statement) > _MAX_STATEMENT_LENGTH:
            lines.append("... (cut)")
        say("\n     ".join(line.rstrip() for line in lines))
        if parameters:
            shown = repr(parameters)
            if len(shown) > _LONGEST_PARAMETERS:
                shown = mask_head(shown, _LONGEST_PARAMETERS) + " ..."
            say(f"     {shown}")
        connection.info[_STARTED] = time.perf_counter()

    def after(
        connection: Connection,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        many: bool,
    ) -> None:
        took_ms = (time.perf_counter() - connection.info.pop(_STARTED)) * 1000
        rows = "" if cursor.rowcount < 0 else f", {cursor.rowcount} rows"
        say(f"     {took_ms:.1f} ms{rows}")

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "after_cursor_execute", after)
    for name in ("begin", "commit", "rollback"):
        word = name.upper()
        event.listen(Engine, name, lambda connection, word=word: say(word))
