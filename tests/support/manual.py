"""The examples of README and of the manual: their blocks, and the project that they make."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fsa_cli.terminal import manual

ROOT = Path(__file__).parents[2]
README = "README"

#: Pages whose examples make a project of their own, with a test file of their own.
APART = frozenset({"asking-for-runs", "console"})

_PATTERN = re.compile(r"^##? ([^\n]+)$|^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./]+)(, continued)?\n")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: The page's name, or `README`.
        heading: The section; above the first one, the title.
    """

    page: str
    heading: str
    language: str
    text: str


def text_of(page: str) -> str:
    """A page as it is written."""
    if page == README:
        return (ROOT / "README.md").read_text(encoding="utf-8")
    return manual.get_page(page).text


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """The blocks of a page, in their order."""
    found, heading = [], ""
    for match in _PATTERN.finditer(text_of(page)):
        if match[1]:
            heading = match[1]
        else:
            found.append(Block(page, heading, match[2], match[3]))
    return tuple(found)


def manual_blocks() -> list[Block]:
    """The blocks of all pages but those apart, in the order of reading."""
    names = [page.name for page in manual.pages() if page.name not in APART]
    return [block for name in names for block in blocks(name)]


def write_files(found: Iterable[Block], directory: Path) -> None:
    """Write their files: `# name` opens one, `# name, continued` adds to it."""
    for block in found:
        if match := _FILE.match(block.text):
            path = directory / match[1]
            before = f"{path.read_text()}\n\n" if match[2] else ""
            path.write_text(before + block.text)


def sh(page: str, heading: str, number: int = 0) -> str:
    """A block of shell commands."""
    found = [b.text for b in blocks(page) if b.heading == heading and b.language == "sh"]
    return found[number]


def table(page: str, *, under: str | None = None) -> list[list[str]]:
    """The cells of the first table of a page, without its heading.

    Args:
        under: Of this section.
    """
    text = text_of(page)
    if under is not None:
        text = text.split(f"\n## {under}\n", 1)[1]
    rows = re.search(r"^\|.*?(?=^[^|])", text + "\n", re.MULTILINE | re.DOTALL)
    assert rows is not None, (page, under)
    lines = [line for line in rows[0].splitlines() if line.startswith("|")]
    return [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines[2:]
    ]
