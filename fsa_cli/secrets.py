"""Take passwords out of text that is about to be shown."""

from __future__ import annotations

import re

_URL = re.compile(r"(?P<head>\b[a-z][a-z0-9+.\-]*://[^\s/:@'\"]*):[^\s'\"]*@", re.IGNORECASE)
_PAIR = re.compile(
    r"(?P<head>(?<![a-z])[\w-]*(?:password|passwd|pwd|secret|token|api_?key)[\w-]*['\"]?\s*[=:]\s*)"
    r"(?P<quote>['\"]?)(?P<value>(?(quote)[^'\"\s]+|[^\s&;,'\"()]+))",
    re.IGNORECASE,
)


def mask(text: str) -> str:
    """*text* with `***` for the passwords of URLs and of `password=...` pairs."""
    return _PAIR.sub(r"\g<head>\g<quote>***", _URL.sub(r"\g<head>:***@", text))
