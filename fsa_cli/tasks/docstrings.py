"""Descriptions of parameters, read from a docstring."""

from __future__ import annotations

import re

__all__ = ["documented_parameters"]

_GOOGLE = re.compile(r"^(Args|Arguments|Parameters):\s*$")
_SPHINX = re.compile(r"^:param (?:[^:]*\s)?(\w+):\s*(.*)$")
_ENTRY = re.compile(r"^\s+\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


def documented_parameters(docstring: str) -> dict[str, str]:
    """The description of each parameter in an `Args:` section or `:param x:` lines, on one line."""
    found: dict[str, str] = {}
    name: str | None = None
    inside = False
    indent = 0
    for line in docstring.splitlines():
        sphinx = _SPHINX.match(line)
        entry = _ENTRY.match(line) if inside else None
        depth = len(line) - len(line.lstrip())
        if sphinx:
            name, found[sphinx[1]] = sphinx[1], sphinx[2]
        elif _GOOGLE.match(line):
            inside, name, indent = True, None, 0
        elif inside and line.strip() and not line[0].isspace():
            inside, name = False, None
        elif entry and (name is None or depth <= indent):
            name, indent = entry[1], depth
            found[name] = entry[2]
        elif name and line.strip() and line[0].isspace():
            found[name] = f"{found[name]} {line.strip()}".strip()
        else:
            name = name if inside else None
    return found
