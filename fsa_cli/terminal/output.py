"""Output: data on stdout, everything else on stderr; for a person, for a pipe, or as JSON."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO

from fsa_cli.exceptions import FsaError, OutputFailed
from fsa_cli.terminal.escaping import escape_json_controls, escape_terminal, one_line
from fsa_cli.terminal.folding import columns_of, fold, is_terminal
from fsa_cli.terminal.json_values import dumps
from fsa_cli.terminal.masking import MAX_TEXT_LENGTH, mask, mask_head
from fsa_cli.terminal.secret_names import is_secret_name
from fsa_cli.terminal.user_code import traceback_text

if TYPE_CHECKING:
    from rich.console import Console

_MAX_ERROR_LINES = 8
# The look behind: a run of spaces is looked at from its beginning only.
_BREAKS = re.compile(r"(?<!\s)[^\S\t\n\r\v\f]*+[\t\n\r\v\f]\s*+")


# How the cells of the columns `state` and `status` are shown on a terminal.
_STATES = {
    **dict.fromkeys(("ok", "succeeded", "alive"), "green"),
    **dict.fromkeys(("FAILED", "failed", "timed_out", "dead"), "bold red"),
    **dict.fromkeys(("running", "queued", "dispatched"), "cyan"),
    **dict.fromkeys(("interrupted", "missed", "paused", "draining"), "yellow"),
    **dict.fromkeys(("skipped", "cancelled", "discarded", "put_off", "stopped"), "dim"),
}
#: Columns of spans and counts that are text.
_RIGHT = frozenset({"took", "in", "age"})
_GAP = 2
_LEAST = 8
_BATCH = 500


@dataclass(frozen=True)
class Output:
    """The output of a command.

    Args:
        json: One JSON document on stdout, errors as one JSON object on stderr.
        quiet: No narration; errors and warnings stay.
        verbose: 1 adds details to the narration.
        color: False: never. None: if the terminal shows it.
        traceback: Errors with their whole traceback.
    """

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    color: bool | None = None
    traceback: bool = False

    @cached_property
    def console(self) -> Console:
        """A Rich console on stdout, for data that has a look of its own on a terminal."""
        return self._console(sys.stdout)

    @cached_property
    def narration(self) -> Console:
        """A Rich console on stderr: progress bars, prompts."""
        return self._console(sys.stderr)

    @property
    def shows_color(self) -> bool:
        """Whether stdout is a terminal that shows styles."""
        return self._colors(sys.stdout)

    def document(self, value: object) -> None:
        """Print *value* as one JSON document."""
        self._json(sys.stdout, value, indent=2 if is_terminal(sys.stdout) else None)

    def line(self, text: str, *, exact: bool = False) -> None:
        """Print one line of data, escaped for a terminal.

        Args:
            exact: In a pipe as it is: a program reads it. It may have several lines.
        """
        if exact and not is_terminal(sys.stdout):
            self._put(sys.stdout, mask(text))
        else:
            self._write(sys.stdout, text if exact else one_line(text))

    def text(self, text: str) -> None:
        """Print data of several lines, escaped for a terminal."""
        self._write(sys.stdout, text)

    def raw(self, text: str) -> None:
        """Print data of our own as it is."""
        self._put(sys.stdout, text.removesuffix("\n"))

    def table(
        self,
        rows: Sequence[Mapping[str, object]],
        columns: Mapping[str, str],
        *,
        wraps: Collection[str] = (),
        spare: Sequence[str] = (),
    ) -> None:
        """Print *rows*: a table on a terminal, tab-separated lines in a pipe, a JSON array.

        Args:
            columns: The keys to show and their headings. JSON has every key of a row.
            wraps: The columns whose texts may take several lines of a terminal; without any, each
                row is one line, and the last column is cut to the room that is left.
            spare: The columns that are left out first where a terminal has no room for all, if
                none but the last one may take several lines.
        """
        if self.json:
            self.document(rows)
        elif is_terminal(sys.stdout):
            if rows:
                self._table(rows, columns, wraps, spare)
        else:
            hidden = frozenset(filter(is_secret_name, columns))
            lines = [[_cell(row.get(key), key in hidden) for key in columns] for row in rows]
            for cells in [list(columns.values()), *_masked(lines)]:
                self._put(sys.stdout, escape_terminal("\t".join(cells)))

    def csv(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a header and *rows* as comma-separated values, each cell masked by itself."""
        import csv

        hidden = [*map(is_secret_name, columns)]
        cells = ([*map(_csv_cell, row, hidden)] for row in rows)
        batch: list[list[object]] = [[*columns]]
        while batch:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(_masked(batch))
            lines = text.getvalue().removesuffix("\n")
            self._put(sys.stdout, escape_terminal(lines) if is_terminal(sys.stdout) else lines)
            batch = [*itertools.islice(cells, _BATCH)]

    def heading(self, text: str) -> None:
        """Print the heading of a section of data; bold on a terminal."""
        if is_terminal(sys.stdout):
            self._put(sys.stdout, self._styled(shown(text), "1", sys.stdout))
        else:
            self.line(text)

    def marked(self, mark: str, text: str, color: str) -> None:
        """Print a line of another program on stdout, after *mark*, which has its color."""
        line = f"{self._styled(mark, color, sys.stdout)} | {shown(text)}"
        self._put(sys.stdout, line)

    def record(self, value: Mapping[str, object]) -> None:
        """Print one thing, a line for each of its fields."""
        if self.json:
            self.document(value)
            return
        width = max(map(len, value), default=0) if is_terminal(sys.stdout) else 0
        for key, item in value.items():
            if not width:
                self._write(sys.stdout, f"{key}\t{_cell(item, is_secret_name(key))}")
                continue
            self.fact(key.ljust(width), _cell(item, is_secret_name(key)))

    def fact(self, name: str, text: str) -> None:
        """Print *text* beside *name*."""
        for line in self.fact_lines(name, text):
            self.line(line)

    def fact_lines(self, name: str, text: str, *, below: int | None = None) -> list[str]:
        """*text* beside *name*; on a terminal folded between words, below itself.

        Args:
            below: The column that the other lines begin in, below a name that is longer.
        """
        name, text = one_line(name), one_line(text)
        if not is_terminal(sys.stdout):
            return [f"{name}  {text}"]
        taken = len(name) + _GAP
        indent = taken if below is None else min(below, taken)
        width = max(self.console.width, indent + _LEAST)
        first, *more = fold(shown(text), width, first=taken, indent=indent)
        return [f"{name}  {first}".rstrip(), *more]

    def say(self, text: str) -> None:
        """Narrate a line, on stderr."""
        if not self.quiet and not self.json:
            self._tell(one_line(text))

    def tell(self, text: str) -> None:
        """Write what a flag of its own asked for to stderr, also with `-q` and `--json`."""
        self._write(sys.stderr, text)

    def detail(self, text: str) -> None:
        """Narrate only with `-v`."""
        if self.verbose:
            self.say(text)

    def leave_line(self) -> None:
        """Begin a new line where a terminal has echoed ^C."""
        if is_terminal(sys.stderr) and not self.json:
            self._put(sys.stderr, "")

    def warn(self, text: str) -> None:
        """Warn on stderr, also with `-q` and `--json`."""
        self._tell(one_line(text), "warning:", "33")

    def error(self, error: FsaError) -> None:
        """Print *error* on stderr: at most eight lines, or one JSON object."""
        if self.json:
            self._json(sys.stderr, _error_document(error))
            return
        if self.traceback and error.__cause__ is not None:
            self._write(sys.stderr, traceback_text(error.__cause__))
        # Masked as a whole: what is secret on a line may be said on the one before.
        lines = [line for part in error.details for line in mask(part).splitlines()]
        message = one_line(error.message)
        hint = mask(error.hint).splitlines() if error.hint else []
        room = _MAX_ERROR_LINES - 1 - len(hint)
        self._tell(message, "error:", "1;31")
        for line in lines[: max(room, 0)]:
            self._tell("  " + line)
        for line in hint:
            self._tell(line, "hint:", "36")
        if error.page is not None and is_terminal(sys.stderr) and room > len(lines):
            self._tell(f"fsa docs {error.page}", "more:", "36")

    def _console(self, file: TextIO) -> Console:
        from rich.console import Console

        # Rich keeps bold where NO_COLOR forbids colours; our own lines have neither then.
        if self._colors(file):
            return Console(file=file, highlight=False)
        return Console(file=file, color_system=None, highlight=False)

    def _table(
        self,
        rows: Sequence[Mapping[str, object]],
        columns: Mapping[str, str],
        wraps: Collection[str],
        spare: Sequence[str],
    ) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.cells import cell_len, set_cell_size
        from rich.table import Table
        from rich.text import Text

        hidden = frozenset(filter(is_secret_name, columns))
        texts = {
            key: [
                escape_terminal(heading),
                *(shown(_cell(row.get(key), key in hidden)) for row in rows),
            ]
            for key, heading in columns.items()
        }
        folds = list(wraps) == [*columns][-1:]  # the last column, which takes several lines
        if folds or not wraps:
            widths = {key: max(map(cell_len, texts[key])) for key in columns}
            for key in (None, *spare):
                texts.pop(key or "", None)
                *others, last = texts
                room = self.console.width - sum(widths[each] + _GAP for each in others)
                least = min(2 * _LEAST if folds else _LEAST, widths[last])
                if last in spare:  # it is whole, or left out
                    least = widths[last]
                if room >= least:
                    break
            is_narrow = room < least
            if is_narrow and others and room >= -_GAP and not folds:
                del texts[last]  # what gives way goes before a name folds
            elif is_narrow:  # a name of 190 characters, too many columns
                wraps = [max(others or [last], key=widths.__getitem__), *wraps]
                room = min(2 * _LEAST, widths[last])
            if last in texts and folds:
                texts[last] = ["\n".join(fold(text, room)) for text in texts[last]]
            elif last in texts and room < widths[last]:
                texts[last] = [
                    text if cell_len(text) <= room else f"{set_cell_size(text, room - 3)}..."
                    for text in texts[last]
                ]
        table = Table(
            box=SIMPLE_HEAD,
            padding=(0, _GAP - 1, 0, 0),  # and the box has a column of its own
            pad_edge=False,
            show_edge=False,
            header_style="bold",
        )
        for key, (heading, *_) in texts.items():
            values = [row.get(key) for row in rows if row.get(key) is not None]
            numeric = bool(values) and all(isinstance(v, int | float) for v in values)
            table.add_column(
                Text(heading),
                justify="right" if numeric or key in _RIGHT else "left",
                overflow="fold",
                no_wrap=key not in wraps,
            )
        for number in range(1, len(rows) + 1):
            cells = {key: Text(column[number]) for key, column in texts.items()}
            for key in ("state", "status"):
                if key in cells:
                    cells[key].stylize(_STATES.get(cells[key].plain, ""))
            table.add_row(*cells.values())
        self.console.print(table)

    def _styled(self, text: str, code: str, stream: TextIO) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colors(stream) else text

    def _colors(self, stream: TextIO) -> bool:
        plain = self.color is False or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        return not plain and is_terminal(stream)

    def _json(self, stream: TextIO | None, value: object, *, indent: int | None = None) -> None:
        text = dumps(value, indent=indent)
        try:
            text.encode(getattr(stream, "encoding", None) or "utf-8")
        except UnicodeEncodeError:  # JSON has escapes of its own for what the locale cannot show
            text = json.dumps(json.loads(text), indent=indent)
        # Masked already: what `mask` makes of "token": "..." is no JSON.
        self._put(stream, escape_json_controls(text))

    def _write(self, stream: TextIO | None, text: str) -> None:
        # What a person reads is bounded; data in a pipe is not.
        self._put(stream, escape_terminal(mask(text)) if stream is sys.stdout else shown(text))

    def _tell(self, text: str, label: str = "", color: str = "") -> None:
        """Write to stderr; a terminal shows it folded, below itself."""
        stream, room = sys.stderr, columns_of(sys.stderr) if sys.stderr is not None else 0
        before = f"{self._styled(label, color, stream)} " if label else ""
        if not room:
            self._put(stream, before + shown(text))
            return
        taken = len(label) + 1 if label else 0
        lines: list[str] = []
        for line in shown(text).split("\n"):
            indent = taken or len(line) - len(line.lstrip()) + _GAP
            lines += fold(line, room, first=0 if lines else taken, indent=indent)
        self._put(stream, before + "\n".join(lines))

    def _put(self, stream: TextIO | None, text: str) -> None:
        if stream is None:  # started with that descriptor closed
            return
        try:
            try:
                stream.write(text + "\n")
            except UnicodeEncodeError:
                encoding = getattr(stream, "encoding", None) or "ascii"
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            if stream is sys.stdout:
                stream.flush()
        except (OSError, ValueError) as exc:
            # Narration that nobody can read keeps nothing from being done.
            if stream is not sys.stdout:
                return
            if isinstance(exc, BrokenPipeError) or not isinstance(exc, OSError):
                raise
            raise OutputFailed(f"the output cannot be written: {exc.strerror}") from exc


def shown(text: str) -> str:
    """*text* as a person reads it: masked, escaped, and cut where nobody would read on."""
    cut = " ... (cut)" if len(text) > MAX_TEXT_LENGTH else ""
    return escape_terminal(mask_head(text)) + cut


def _error_document(error: FsaError) -> dict[str, object]:
    document: dict[str, object] = {
        "error": error.kind,
        "message": error.message,
        "exit_code": error.exit_code,
    }
    if error.details:
        document["details"] = error.details
    if error.hint:
        document["hint"] = error.hint
    return document


class _Masked(str):
    """A text without a secret: what masking makes of JSON's "token": "***" is no JSON."""


def _cell(value: object, is_hidden: bool) -> str:
    """A value as text, unless it goes by the name of a secret, as in JSON."""
    return "***" if is_hidden and isinstance(value, str) else _plain(value)


def _csv_cell(value: object, is_hidden: bool) -> object:
    match value:
        case str():
            return "***" if is_hidden else value
        case None | bool() | int() | float():
            return value
        case Mapping() | list() | tuple():
            return _Masked(dumps(value))
        case _:
            return str(value)


def _masked(rows: list[list[Any]]) -> list[list[Any]]:
    """*rows* with each text masked by itself: one that says "password=" is not read on in the next.

    All are looked at at once, and most have no secret: that takes a quarter of the time.
    """
    together = "\n".join(cell for row in rows for cell in row if type(cell) is str)
    if mask(together) == together:
        return rows
    return [[mask(cell) if type(cell) is str else cell for cell in row] for row in rows]


def _plain(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case list() | tuple() | set() | frozenset():
            return ", ".join(_plain(item) for item in value)
        case Mapping():
            return _Masked(dumps(value)) if value else ""
        case _:
            return _BREAKS.sub(" ", str(value))
