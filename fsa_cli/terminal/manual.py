"""The manual's pages, as they were installed: listed, found by name, searched, shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fsa_cli.exceptions import UsageError, did_you_mean
from fsa_cli.terminal.escaping import escape_terminal

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ORDER", "Match", "Page", "get_page", "pages", "search", "show"]

#: In the order in which they are read; a page that is not named here comes after them.
ORDER = (
    "first-steps",
    "requests",
    "outside-requests",
    "tests",
    "configuring",
    "tasks",
    "scheduling",
    "asking-for-runs",
    "runs",
    "guarantees",
    "production",
    "brokers",
    "health",
    "console",
    "shell",
    "database",
    "environments",
    "settings",
    "commands",
    "trouble",
    "security",
    "figures",
    "coming-from",
    "how-it-is-built",
    "contributing",
)

_DIRECTORY = Path(__file__).parents[1] / "manual"
_WIDEST = 100
_LINK = re.compile(r"\[([^\[\]]*+)\]\(([\w-]+)\.md(?:#[\w-]*)?\)")


#: What else a page is called by whoever looks for it.
_ALSO = {
    **dict.fromkeys(("kubernetes", "k8s", "docker", "systemd", "deployment"), "production"),
    **dict.fromkeys(("migrations", "migration", "alembic"), "database"),
    **dict.fromkeys(("pytest", "testing", "test"), "tests"),
    **dict.fromkeys(("celery", "procrastinate"), "brokers"),
    **dict.fromkeys(("cron", "schedule", "scheduler"), "scheduling"),
    **dict.fromkeys(("enqueue", "enqueuing"), "asking-for-runs"),
    **dict.fromkeys(("monitoring", "metrics", "probes"), "health"),
}


@dataclass(frozen=True)
class Page:
    """A page of the manual.

    Attributes:
        name: Its name in `fsa docs NAME`.
        text: Markdown: `# Title`, a line that says what it is about, sections under `##`.
    """

    name: str
    text: str

    @property
    def title(self) -> str:
        return self.text.partition("\n")[0].removeprefix("# ")

    @property
    def summary(self) -> str:
        """Its first paragraph, as one line."""
        return " ".join(self.text.split("\n\n", 2)[1].split())


@dataclass(frozen=True)
class Match:
    """A line of the manual that a text stands in."""

    page: str
    section: str
    line: str


def pages() -> list[Page]:
    """Every page, in the order of reading."""
    found = [Page(file.stem, file.read_text(encoding="utf-8")) for file in _DIRECTORY.glob("*.md")]
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(found, key=lambda page: (place.get(page.name, len(place)), page.name))


def get_page(name: str) -> Page:
    """The page of that name, or with a title that begins so.

    Raises:
        UsageError: There is none.
    """
    known = pages()
    wanted = name.lower().removesuffix(".md").replace("_", "-").replace(" ", "-")
    wanted = _ALSO.get(wanted, wanted)
    for page in known:
        if wanted in (page.name, page.title.lower().replace(" ", "-")):
            return page
    beginning = [page for page in known if page.name.startswith(wanted)]
    if len(beginning) == 1:
        return beginning[0]
    near = did_you_mean(wanted, [page.name for page in known], most=1)
    raise UsageError(
        f"the manual has no page {name!r}",
        hint=f"fsa docs lists the pages, fsa docs --search {shlex.quote(name)} looks into them"
        if near is None
        else f"{near} fsa docs --search {shlex.quote(name)} looks into all",
    )


def search(text: str) -> list[Match]:
    """The lines in which all words of *text* stand, in any case."""
    words = text.lower().split()
    return [
        match
        for page in pages()
        for match in _lines(page)
        if all(word in match.line.lower() for word in words)
    ]


def show(page: Page, console: Console, *, paged: bool) -> None:
    """Print *page* as a terminal shows it.

    Args:
        paged: With a pager (`PAGER`, else less) where it is longer than the terminal.
    """
    from rich.markdown import Markdown

    console.width = min(console.width, _WIDEST)
    # A link to another page is the command that shows it.
    text = _LINK.sub(lambda link: f"{link[1]} (`fsa docs {link[2]}`)", page.text)
    with console.capture() as captured:
        console.print(Markdown(escape_terminal(text), hyperlinks=False))
    shown = "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
    if not (paged and shown.count("\n") >= console.height and _give_to_pager(shown)):
        sys.stdout.write(shown)


def _lines(page: Page) -> Iterator[Match]:
    section = page.title
    for line in page.text.splitlines():
        if heading := re.match(r"#+ (.*)", line):
            section = heading[1]
        if line.strip(" |-"):
            yield Match(page.name, section, line.strip())


def _give_to_pager(text: str) -> bool:
    """Whether there is one, and a person has read *text* in it."""
    argv = shlex.split(os.environ.get("PAGER") or "less")
    environment = {**os.environ, "LESS": os.environ.get("LESS", "FRX")}  # as git does
    try:
        pager = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True, env=environment)
    except (OSError, ValueError):
        return False
    while True:
        try:
            pager.communicate(text)
        except KeyboardInterrupt:  # less is asked too, and goes on
            continue
        except BrokenPipeError:
            pager.wait()
        return True
