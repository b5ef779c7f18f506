"""Text from outside as a terminal may have it: what would move the cursor is shown, not done.

What is escaped: the control characters C0 and C1 but for the line break and the tab, the marks that
turn the direction of writing (https://trojansource.codes), and the line breaks that only some
programs know. Everything else stays as it is.
"""

from __future__ import annotations

import logging
import re
import traceback

__all__ = ["escape_json_controls", "escape_record", "escape_terminal"]

_UNSAFE = re.compile(
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
# Of these JSON's own escapes leave nothing below U+0020.
_UNSAFE_IN_JSON = re.compile(
    "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def escape_terminal(text: str) -> str:
    r"""*text* with `\x1b`, `\u202e` for the characters that act on a terminal."""
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_escaped, text)


def escape_json_controls(text: str) -> str:
    """JSON text that means the same, with JSON's escapes for what acts on a terminal."""
    return text if text.isascii() else _UNSAFE_IN_JSON.sub(_escaped_in_json, text)


def escape_record(record: logging.LogRecord) -> bool:
    """A filter for a logger: what its records say is shown escaped, by whatever handler."""
    message = record.getMessage()
    if (escaped := escape_terminal(message)) != message:
        record.msg, record.args = escaped, ()
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        told = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
        if (escaped := escape_terminal(told)) != told:
            record.exc_text = escaped
    return True


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def _escaped_in_json(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[n]:02x}{units[n + 1]:02x}" for n in range(0, len(units), 2))
