"""Files of `NAME=value` lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fsa_cli.exceptions import ConfigurationError

_LINE = re.compile(
    r"""
    \s*(?:export\s+)?
    (?P<name>[A-Za-z_][A-Za-z0-9_.]*)
    \s*=\s*
    (?:
        '(?P<single>[^']*)'
      | "(?P<double>(?:\\.|[^"\\])*)"
      | (?P<bare>[^\n]*?)
    )
    \s*(?:(?:^|(?<=[\s'"]))\#[^\n]*)?$
    """,
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def find(directory: Path) -> Path | None:
    """The nearest `.env`, from *directory* up to the root of its repository.

    Outside a repository only *directory* itself is looked at: a stray file in a parent that has
    nothing to do with the project must not choose its database.
    """
    above = [directory, *directory.parents]
    root = next((place for place in above if (place / ".git").exists()), directory)
    for place in above[: above.index(root) + 1]:
        if (place / ".env").is_file():
            return place / ".env"
    return None


def read(path: Path) -> dict[str, str]:
    """The variables of a file. `export`, quotes and comments are known; nothing is expanded."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc}") from exc
    return dict(_variables(path, text))


def _variables(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:  # the line itself may hold a secret, so it is not shown
            raise ConfigurationError(
                f"{path}:{number} is not a line of the form NAME=value", hint="NAME='a value'"
            )
        if (double := match["double"]) is not None:
            value = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), double)
        else:
            value = match["bare"] if match["single"] is None else match["single"]
        yield match["name"], value
