"""`fsa top`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.exceptions import FsaError
from fsa_cli.terminal.folding import is_terminal

if TYPE_CHECKING:
    from fsa_cli.ledger.store import Ledger
    from fsa_cli.runs.overview import Overview
    from fsa_cli.runs.run_pages import RunDetail, RunLine
    from fsa_cli.terminal.screen import Line, Screen

_EVERY_S = 2.0
_KEYS = "q: leave   arrows: a run   Enter: in full   r: retry   c: cancel   p: pause"  # 80 columns
_FAILED = 30


def top(
    context: typer.Context,
    span: Annotated[
        str, option("top", "--span", help="How far the lanes reach: 15m, 1h, 6h, 24h.", metavar="S")
    ] = "1h",
) -> None:
    """What runs, waits and has failed, on this terminal: again every 2 s, until q.

    In or behind a pipe, and with --json, once.

    \b
      fsa top
      fsa top --span 6h
      fsa top --json
    """
    from fsa_cli.exceptions import UsageError
    from fsa_cli.ledger.access import existing
    from fsa_cli.runs.lanes import SPANS

    fsa = Fsa.of(context)
    if span not in SPANS:
        raise UsageError(f"--span {span!r}: there are {', '.join(SPANS)}")
    with existing(fsa.load(), fsa.settings) as ledger:
        shown = _Top(fsa, ledger, span)
        if fsa.output.json:
            fsa.output.document(asdict(shown.look()))
        elif not (fsa.output.console.is_terminal and is_terminal(sys.stdin)):
            *told, _ = ["".join(text for text, _ in line).rstrip() for line in shown.lines(100, 60)]
            while told and not told[-1]:
                told.pop()
            for line in told:
                fsa.output.line(line)
        else:
            from fsa_cli.terminal.screen import Screen

            with contextlib.suppress(KeyboardInterrupt, EOFError):
                shown.run(Screen(fsa.output.console))


class _Top:
    """The state of the screen: the run that is chosen, the one that is shown in full."""

    def __init__(self, fsa: Fsa, ledger: Ledger, span: str) -> None:
        from fsa_cli.runs.coming import ComingInstants

        self._fsa = fsa
        self._ledger = ledger
        self._span = span
        self._coming = ComingInstants()
        self._chosen: str | None = None
        self._detail: RunDetail | None = None
        self._first = 0
        self._said = ""
        self._asked: str | None = None
        self._seen: Overview | None = None
        self._runs: Sequence[RunLine] = ()

    def look(self) -> Overview:
        """The overview at this moment, and the runs to choose from."""
        from fsa_cli.ledger.run_search import FAILED, RunFilter
        from fsa_cli.runs.overview import overview
        from fsa_cli.runs.run_pages import run_detail, run_page

        now_ms = self._ledger.read(self._ledger.now_ms)
        seen = overview(
            self._ledger,
            self._coming,
            now_ms,
            zone=self._fsa.settings.timezone,
            span=self._span,
        )
        wanted = RunFilter(statuses=FAILED, since_ms=now_ms - 24 * 3600 * 1000)
        failed = run_page(self._ledger, wanted, None, _FAILED, seen.now).runs
        self._seen, self._runs = seen, [*seen.running, *failed]
        if self._detail is not None:
            self._detail = run_detail(self._ledger, self._detail.line.id, seen.now) or self._detail
        return seen

    def lines(self, width: int, height: int) -> list[Line]:
        from fsa_cli.cli.top_view import detail_lines, overview_lines

        seen = self._seen or self.look()
        foot: Line = [(self._said or _KEYS, "bold" if self._said else "dim")]
        if self._detail is not None:
            shown = detail_lines(self._detail, seen.now, self._first, height - 1)
        else:
            where = f"{self._ledger.namespace}  {self._ledger.where}"
            shown = overview_lines(
                seen, self._runs, self._place(), where, width=width, height=height - 1
            )
        return [*shown, *[[] for _ in range(height - 1 - len(shown))], foot]

    def run(self, screen: Screen) -> None:
        """Show it until q."""
        with screen.open():
            while True:
                self.look()
                deadline = time.monotonic() + _EVERY_S
                while (left := deadline - time.monotonic()) > 0:
                    screen.draw(self.lines(screen.width, screen.height))
                    key = screen.key(left)
                    if key == "q" and self._asked is None:
                        return
                    if key is not None and self._pressed(key):
                        break

    def _place(self) -> int:
        ids = [run.id for run in self._runs]
        return ids.index(self._chosen) if self._chosen in ids else 0

    def _pressed(self, key: str) -> bool:
        """Do what a key means; whether something may have changed."""
        if self._asked is not None:
            run_id, self._asked, self._said = self._asked, None, ""
            return key == "y" and self._do("runs cancel", lambda: self._cancel(run_id))
        self._said = ""
        if key == "escape":
            self._detail, self._first = None, 0
        elif key in ("up", "down", "page up", "page down"):
            self._move({"up": -1, "down": 1, "page up": -10, "page down": 10}[key])
        elif self._runs or self._detail is not None:
            run = self._detail.line if self._detail else self._runs[self._place()]
            return self._act(key, run)
        return False

    def _move(self, by: int) -> None:
        if self._detail is not None:
            self._first = max(self._first + by, 0)
        elif self._runs:
            place = min(max(self._place() + by, 0), len(self._runs) - 1)
            self._chosen = self._runs[place].id

    def _act(self, key: str, run: RunLine) -> bool:
        from fsa_cli.runs.run_pages import run_detail

        self._chosen = run.id
        if key == "enter" and self._seen is not None:
            self._detail, self._first = run_detail(self._ledger, run.id, self._seen.now), 0
        elif key == "r":
            return self._do("runs retry", lambda: self._retry(run.id))
        elif key == "c":
            self._asked, self._said = run.id, f"cancel {run.id[:8]} of {run.task}? y or n"
        elif key == "p":
            return self._pause(run.task)
        return False

    def _do(self, command: str, work: Callable[[], str]) -> bool:
        try:
            self._fsa.environment().refuse_prohibited(command)
            self._said = work()
        except FsaError as exc:
            self._said = exc.message
        return True

    def _retry(self, run_id: str) -> str:
        from fsa_cli.runs import control

        new = control.retry(self._ledger, self._fsa.settings, run_id, lambda warning: None)
        return f"enqueued {new.id[:8]}"

    def _cancel(self, run_id: str) -> str:
        from fsa_cli.runs import control

        run, was = control.cancel(self._ledger, run_id)
        return f"{'cancelled' if was == 'queued' else 'asked to end'}: {run.id[:8]}"

    def _pause(self, name: str) -> bool:
        from fsa_cli.runs import control

        def change() -> str:
            if control.pause(self._ledger, [name]):
                return f"paused {name}"
            control.resume(self._ledger, [name])
            return f"resumed {name}"

        return self._do("scheduler pause", change)
