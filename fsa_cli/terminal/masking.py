"""Mask passwords and other secrets in text that is about to be shown."""

from __future__ import annotations

import re

from fsa_cli.terminal.secret_names import SECRET_NAME

# A password may hold "/" and "@" as they are. A web address has a port there, and "@" in its path.
_URL = re.compile(r"\b(?P<head>[a-z][a-z0-9+.\-]*://[^\s/:@'\"]*):(?P<rest>[^\s'\"]*)@", re.I)
_WEB = re.compile(r"https?://", re.I)
_PAIR = re.compile(
    rf"""
    (?P<head>
        (?<![a-z]) [\w-]* {SECRET_NAME} [\w-]* ['"]? \s*[=:]\s*
    )
    (?: '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | [^\s&;,'"()\[\]{{}}]+ )
    """,
    re.IGNORECASE | re.VERBOSE,
)


def mask(text: str) -> str:
    """*text* with `***` for the passwords of URLs and of `password=...` pairs."""
    return _PAIR.sub(r"\g<head>***", _URL.sub(_mask_url, text))


def _mask_url(match: re.Match[str]) -> str:
    if _WEB.match(match["head"]) and "/" in match["rest"]:
        return match[0]
    return f"{match['head']}:***@"
