"""Take passwords out of text that is about to be shown, in time that grows with its length alone.

What a task returns and what a row holds comes here while the scheduler waits. So nothing searches
for a second time what a search has passed: each expression is possessive or bounded, and texts
without the characters of a secret are told apart by `in`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fsa_cli.terminal.secret_names import SECRET_NAME, is_secret_name

__all__ = ["MAX_TEXT_LENGTH", "mask", "mask_head", "mask_tail", "mask_within"]

#: Characters of a text from outside that are kept, or shown where a person reads.
MAX_TEXT_LENGTH = 64 * 1024

# How far beyond a cut a secret may reach that the cut goes through.
_CONTEXT = 8 * 1024

# In each secret name there is one of these, and `in` is 20 times as fast as a search.
_IN_EACH_NAME = ("pass", "pwd", "secret", "token", "credential", "key")
_PAIR = re.compile(
    rf"""
    {SECRET_NAME} [\w-]*+ (?: ['"]? \s*+ (?: => | [=:] ) \s*+
    (?P<value>
        [bruf]{{0,2}}+ (?:
            (?: '(?:[^'\\]|\\.){{0,{_CONTEXT}}}+' )++ | (?: "(?:[^"\\]|\\.){{0,{_CONTEXT}}}+" )++
            | '(?:[^'\\\n]|\\.)*+ | "(?:[^"\\\n]|\\.)*+  # its end was cut off
        )
        | \[ [^\[\]]{{0,{_CONTEXT}}}+ \] | [\w.]{{1,60}}+ \( [^()]{{0,{_CONTEXT}}}+ \)
        | [^\s&;,'"()\[\]{{}}]++
    ) )?
    """,
    re.IGNORECASE | re.VERBOSE,
)
# What comes after an option that a sentence names.
_PROSE = "an?|and|are|as|but|for|from|in|is|of|on|option|or|the|to|was|which|with"
# What stands beside its name with neither "=" nor ":" between, or after a word: SQL that sets a
# password, the arguments of a command, a header.
_BESIDE = re.compile(
    rf"""
    (?:
        passw(?:or)?d (?:
            [^\S\n]*+ \( [^\S\n]*+
            | [^\S\n]++ (?: for \s++ [^\s=]{{1,80}}+ \s*+ = \s*+ | (?:[en]|u&)?+ )
        )
        | (?<! revision[ ] ) \b identified \s++
            (?:with \s++ \S{{1,80}}+ \s++)?+ (?:by|as) \s++ (?:password \s++)?+
        | -- (?:\w{{1,30}}-){{0,5}} {SECRET_NAME} [\w-]*+ (?:
            ['"] \s*+ , \s*+
            | [^\S\n]++ (?: (?=['"]) | (?P<argument>
                (?! --[\w-]{{0,60}}{SECRET_NAME} | (?:{_PROSE})(?:[\s.,;:)]|\Z) ) [^\s'"]++
            ) )
        )
        | \b authorization ['"]? \s*+ [=:] \s*+ (?: (?P<header>
            (?:(?:bearer|basic|digest|token|negotiate) [^\S\n]++)?+ [^\s'"]++
        ) | (?=['"]) )
    )
    (?(header) | (?(argument) | (?P<quoted>
        '(?:[^'\\]|\\.|''){{0,{_CONTEXT}}}+' | "(?:[^"\\]|\\.|""){{0,{_CONTEXT}}}+"
        | '(?:[^'\\\n]|\\.)*+ | "(?:[^"\\\n]|\\.)*+  # its end was cut off
    ) ) )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_IN_EACH_BESIDE = ("passw", "identified", "--", "authorization")
# What Pydantic says was given to a field, and how far before that its name may be.
_GIVEN, _GIVEN_END = ", input_value=", ", input_type="
_MAX_FIELD_LENGTH = 500
# A driver tries as a host what comes after the first "@" of a password that is not encoded.
_HOST = re.compile(r"""(?:host(?:[ ]name)?|server[ ]on)[ ] (['"]) ([^'"\s]{0,500}@)""", re.VERBOSE)
_IN_EACH_HOST = ("host", "server on")
_SCHEME = re.compile(r"[a-z][a-z0-9+.\-]{0,40}+\Z", re.IGNORECASE)
_MAX_SCHEME_LENGTH = 40
_RUN = re.compile(r"[^\s'\"]*+")
_USER = re.compile(r"[^\s/:@'\"]*+")
_PATH = re.compile(r"[/?#]")


def mask(text: str) -> str:
    """*text* with `***` for passwords: of URLs, of `password=...` pairs, in SQL, in the arguments
    of a command, of a header, and what Pydantic says was given to a field called `password`."""
    return _masked(text, 0, len(text))


def mask_head(text: str, length: int = MAX_TEXT_LENGTH) -> str:
    """The first *length* characters of *text*, masked; no secret is left where the cut goes."""
    return _masked(text, 0, min(length, len(text)))


def mask_within(text: str, length: int) -> str:
    """*text*, masked, in so many characters: with `...` where it is cut, as by `mask_head`."""
    return mask(text) if len(text) <= length else f"{mask_head(text, length - 3)}..."


def mask_tail(text: str, length: int = MAX_TEXT_LENGTH) -> str:
    """The last *length* characters of *text*, masked; no secret is left where the cut goes."""
    return _masked(text, max(len(text) - length, 0), len(text))


def _masked(text: str, start: int, end: int) -> str:
    window_start = max(start - _CONTEXT, 0)
    window = text[window_start : end + _CONTEXT]
    start, end = start - window_start, end - window_start
    parts = []
    done = start
    lowered = window.lower()
    for secret_start, secret_end in sorted(
        [
            *_in_urls(window),
            *_in_pairs(window, lowered),
            *_beside(window, lowered),
            *_in_fields(window),
            *_in_hosts(window),
        ]
    ):
        if secret_end <= done:
            continue
        if secret_start >= end:
            break
        if secret_start >= done:
            parts += [window[done:secret_start], "***"]
        elif not parts:  # the text begins within a secret
            parts.append("***")
        done = secret_end
    if not parts:
        return window[start:end]
    return "".join([*parts, window[done:end]])


def _in_pairs(text: str, lowered: str) -> Iterator[tuple[int, int]]:
    if not any(part in lowered for part in _IN_EACH_NAME):
        return
    for match in _PAIR.finditer(text):
        if match["value"] is not None and not _says_whether(text, match.start(), match["value"]):
            yield match.span("value")


def _beside(text: str, lowered: str) -> Iterator[tuple[int, int]]:
    if any(part in lowered for part in _IN_EACH_BESIDE):
        for match in _BESIDE.finditer(text):
            yield match.span(match.lastgroup or 0)


def _in_fields(text: str) -> Iterator[tuple[int, int]]:
    at, end = text.find(_GIVEN), 0
    while at >= 0:
        given = at + len(_GIVEN)
        # The name is on the line before, if it still is one.
        start, end = max(at - _MAX_FIELD_LENGTH, end), given
        if is_secret_name(text[start:at]):
            found = text.find(_GIVEN_END, given, given + _CONTEXT)
            end = found if found >= 0 else min(given + _CONTEXT, len(text))
            yield given, end
        at = text.find(_GIVEN, end)


def _in_hosts(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text and any(part in text for part in _IN_EACH_HOST):
        for match in _HOST.finditer(text):
            yield match.start(2), match.end(2) - 1


def _says_whether(text: str, start: int, value: str) -> bool:
    """Whether it is MySQL's "(using password: YES)", which tells a wrong one from none."""
    return value in ("YES", "NO") and text[max(start - 7, 0) : start] == "(using "


def _in_urls(text: str) -> Iterator[tuple[int, int]]:
    """A password may hold "/" and "@" as they are: it ends at the last "@" before a space.

    A web address has a port there, and "@" in its path.
    """
    run_end = last_at = -1
    at = text.find("://") if "@" in text else -1
    while at >= 0:
        if at >= run_end:
            run_end = _end(_RUN, text, at)
            last_at = text.rfind("@", at, run_end)
        if last_at <= at:
            at = text.find("://", run_end)
            continue
        found = at + 3
        scheme = None
        if text[max(at - 1, 0)].isalnum():
            password = _end(_USER, text, found) + 1
            if text[password - 1 : password] == ":":
                scheme = _SCHEME.search(text[max(at - _MAX_SCHEME_LENGTH, 0) : at])
        if scheme:
            secret_end = last_at
            if scheme[0].lower() in ("http", "https"):
                path = _PATH.search(text, password, run_end)
                secret_end = text.rfind("@", password, path.start() if path else run_end)
            if secret_end >= password:
                yield password, secret_end
                found = secret_end
        at = text.find("://", found)


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start
