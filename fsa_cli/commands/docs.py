"""`fsa docs`."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fsa_cli.cli.completion import page_names
from fsa_cli.cli.fsa_context import Fsa
from fsa_cli.cli.options import option
from fsa_cli.terminal import manual
from fsa_cli.terminal.folding import fold, is_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer()

_BEFORE = 24
_MOST_LINES = 2


@app.command()
def docs(
    context: typer.Context,
    page: Annotated[
        str | None,
        typer.Argument(
            metavar="PAGE", help="A page.", show_default=False, autocompletion=page_names
        ),
    ] = None,
    search: Annotated[
        str | None,
        option("docs", "--search", help="The lines with these words.", metavar="TEXT"),
    ] = None,
) -> None:
    """The manual of the version that is installed: its pages, one of them, a search in all.

    \b
      fsa docs
      fsa docs scheduling
      fsa docs --search "time zone"

    The app is not imported. A long page is shown with PAGER, else less.
    """
    fsa = Fsa.of(context)
    if search is not None:
        if page is not None:
            manual.get_page(page)
        _show_matches(
            fsa, search, [found for found in manual.search(search) if page in (None, found.page)]
        )
    elif page is not None:
        _show_page(fsa, manual.get_page(page))
    else:
        rows = [
            {"page": each.name, "title": each.title, "about": each.summary}
            for each in manual.pages()
        ]
        fsa.output.table(rows, {"page": "page", "about": "about"})
        fsa.output.say("")
        fsa.output.say("fsa docs PAGE shows one, fsa docs --search TEXT looks into all")


def _show_page(fsa: Fsa, page: manual.Page) -> None:
    if fsa.output.json:
        fsa.output.document({"page": page.name, "title": page.title, "text": page.text})
    elif fsa.output.console.is_terminal:
        manual.show(page, fsa.output.console, paged=is_terminal(sys.stdin))
    else:
        fsa.output.raw(page.text)  # ours: a manifest's `secretRef: name: shop` is not masked


def _show_matches(fsa: Fsa, text: str, found: Sequence[manual.Match]) -> None:
    if not found and not fsa.output.json:
        fsa.output.say(f"no line of the manual has {text!r}")
        return
    if fsa.output.console.is_terminal and not fsa.output.json:
        _show_folded(fsa, text, found)
        return
    rows = [asdict(each) for each in found]
    fsa.output.table(rows, {"page": "page", "section": "section", "line": "line"})


def _show_folded(fsa: Fsa, text: str, found: Sequence[manual.Match]) -> None:
    """Each section once, and below it its lines, with the words that were looked for in sight."""
    above = None
    for each in found:
        if (each.page, each.section) != above:
            above = each.page, each.section
            fsa.output.line(f"{each.page}: {each.section}".replace("`", ""))
        words = " ".join(re.sub(r"[|]+|^[-#]+ ", " ", each.line.replace("`", "")).split())
        shown = fold(_from_match(words, text), fsa.output.console.width - 6)
        for number, line in enumerate(shown[:_MOST_LINES], start=1):
            is_cut = number == _MOST_LINES < len(shown)
            fsa.output.line(f"  {line}{' ...' if is_cut else ''}")
    fsa.output.say("")
    fsa.output.say("fsa docs PAGE shows one of them")


def _from_match(line: str, text: str) -> str:
    """*line* from shortly before the first of the words that were looked for."""
    start = min(max(line.lower().find(word), 0) for word in text.lower().split() or [""])
    if start <= _BEFORE:
        return line
    return "... " + line[line.find(" ", start - _BEFORE, start) + 1 or start - _BEFORE :]
