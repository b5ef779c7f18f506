"""Text from outside as a terminal may have it: what would move the cursor is shown, not done.

What is escaped: the control characters C0 and C1 but for the line break and the tab, the marks that
turn the direction of writing (https://trojansource.codes), the line breaks that only some programs
know, and half a character, which none can be sent. Everything else stays as it is.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

__all__ = ["escape_json_controls", "escape_record", "escape_terminal", "one_line"]

_CONTROLS = (*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20))
_OTHERS = (
    *range(0x7F, 0xA0),
    *(0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)),
    *range(0xFFF9, 0xFFFC),
    *range(0xE0000, 0xE0080),
)
# Tables, and no function that is called for each: 20 million of them took 40 s.
_ESCAPES = {
    each: chr(each).encode("unicode_escape").decode()
    for each in (*_CONTROLS, *_OTHERS, *range(0xD800, 0xE000))
}
# JSON's own escapes leave nothing below U+0020.
_ESCAPES_IN_JSON = {each: json.dumps(chr(each))[1:-1] for each in _OTHERS} | {0x7F: r"\u007f"}
_UNSAFE = re.compile(rf"[{''.join(map(chr, (*_CONTROLS, *_OTHERS)))}\ud800-\udfff]")
# The look behind: a run of spaces is looked at from its beginning only.
_LINE_BREAK = re.compile(r"(?<!\s)[^\S\n]*+\n\s*+")


def escape_terminal(text: str) -> str:
    r"""*text* with `\x1b`, `\u202e` for the characters that act on a terminal."""
    if text.isascii() and text.isprintable():
        return text
    if "\r" in text:  # before a line feed it belongs to the end of the line
        text = "\r\n".join(line.replace("\r", r"\r") for line in text.split("\r\n"))
    return text.translate(_ESCAPES) if _UNSAFE.search(text) else text


def one_line(text: str) -> str:
    """*text* without line breaks: a name that has one begins no line that would be another's."""
    return _LINE_BREAK.sub(" ", text.strip("\n")) if "\n" in text else text


def escape_json_controls(text: str) -> str:
    """JSON text that means the same, with JSON's escapes for what acts on a terminal."""
    if text.isascii() and "\x7f" not in text:
        return text
    return text.translate(_ESCAPES_IN_JSON) if _UNSAFE.search(text) else text


def escape_record(record: logging.LogRecord) -> bool:
    """A filter for a logger: what its records say is one line and escaped, by whatever handler."""
    import traceback

    message = record.getMessage()
    if (escaped := escape_terminal(one_line(message))) != message:
        record.msg, record.args = escaped, ()
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        told = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
        if (escaped := escape_terminal(told)) != told:
            record.exc_text = escaped
    return True
