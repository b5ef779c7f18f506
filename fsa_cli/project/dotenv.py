"""Files of `NAME=value` lines, as python-dotenv reads them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

from fsa_cli.exceptions import ConfigurationError


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
    """The variables of a file; a name without a value is none.

    `${NAME}` and `${NAME:-default}` are expanded. A variable of the environment goes before one of
    the file, as for `load_dotenv()`.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    # Both take 10 ms to import, and most projects have no such file.
    from dotenv.main import DotEnv
    from dotenv.parser import parse_stream

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc}") from exc
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or "\0" in binding.original.string:
            # The line itself may hold a secret, so it is not shown.
            blank = len(binding.original.string) - len(binding.original.string.lstrip())
            number = binding.original.line + binding.original.string[:blank].count("\n")
            raise ConfigurationError(
                f"{path}:{number} is not a line of the form NAME=value", hint="NAME='a value'"
            )
    values = DotEnv(None, io.StringIO(text), override=False).dict()
    return {n: value for n, value in values.items() if value is not None and "=" not in n}


def export(variables: Mapping[str, str]) -> dict[str, str]:
    """Put *variables* into the environment, and replace none; those whose value is now there."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    return {name: value for name, value in variables.items() if os.environ[name] == value}
