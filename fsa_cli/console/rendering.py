"""Pages from templates: what comes from rows is escaped, and nothing from elsewhere is loaded."""

from __future__ import annotations

import gzip
import hashlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from fsa_cli.console.drawing import ROW_HEIGHT, lane_bars, lane_labels
from fsa_cli.console.parts import at, iso, run_link, status, task_link, word
from fsa_cli.terminal.escaping import escape_terminal
from fsa_cli.terminal.formatting import format_bytes, format_elapsed, format_span, format_time
from fsa_cli.terminal.masking import mask

__all__ = ["HEADERS", "asset", "assets_version", "etag_of", "page", "prepare", "unchanged"]

_HERE = Path(__file__).parent
_SMALLEST = 1024
_LARGE = 200_000

#: On each response. `Referrer-Policy: no-referrer` would have browsers send `Origin: null`.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ASSETS = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def page(request: Request, template: str, context: dict[str, Any], status: int = 200) -> Response:
    """The page of a template, compressed if the browser takes it."""
    text = _environment().get_template(template).render(context, assets=assets_version())
    return _response(request, text.encode("utf-8", "backslashreplace"), "text/html", status)


def prepare() -> None:
    """Compile the templates."""
    for name in _environment().list_templates():
        _environment().get_template(name)


def unchanged(request: Request, etag: str) -> Response | None:
    """The answer 304 if the browser has this very page; None if not."""
    given = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
    if etag not in given:
        return None
    return Response(
        status_code=304, headers={**HEADERS, "ETag": etag, "Cache-Control": "private, no-cache"}
    )


def etag_of(*parts: object) -> str:
    """A tag of a page that is as what it was made from."""
    joined = "\0".join([assets_version(), *map(str, parts)])
    return f'W/"{hashlib.sha256(joined.encode()).hexdigest()[:24]}"'


def asset(request: Request, name: str) -> Response | None:
    """The style sheet or the script; None if there is no such file. They may be kept for ever:
    their address has their version."""
    if name not in _ASSETS:
        return None
    response = _response(request, _content(name), _ASSETS[name], 200)
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response


@cache
def assets_version() -> str:
    """Another one for each release of the style sheet and the script, and of the templates."""
    digest = hashlib.sha256()
    for path in sorted([*_HERE.glob("static/*"), *_HERE.glob("templates/*")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _response(request: Request, content: bytes, kind: str, status: int) -> Response:
    headers = {**HEADERS, "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding, Cookie"}
    if len(content) > _SMALLEST and "gzip" in request.headers.get("accept-encoding", ""):
        # The best takes 4 ms for the largest, and saves a tenth.
        content = gzip.compress(content, 9 if len(content) < _LARGE else 6, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Response(content, status, headers, media_type=f"{kind}; charset=utf-8")


@cache
def _content(name: str) -> bytes:
    return (_HERE / "static" / name).read_bytes()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
        auto_reload=False,
    )
    environment.globals.update(
        at=at,
        lane_bars=lane_bars,
        lane_labels=lane_labels,
        row_height=ROW_HEIGHT,
        run_link=run_link,
        status=status,
        task_link=task_link,
    )
    environment.filters.update(
        clock=format_time,
        day=lambda at: at.strftime("%Y-%m-%d"),
        iso=iso,
        elapsed=lambda ms: "" if ms is None else format_elapsed(ms),
        span=lambda seconds: format_span(seconds * 1000),
        bytes=format_bytes,
        masked=mask,
        word=word,
        query=_query,
        number=lambda value: f"{value:,}",
    )
    return environment


def _shown(value: object) -> object:
    """What acts on a terminal, or turns the direction of writing, is shown and does nothing."""
    if value is None:
        return ""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return escape_terminal(value)


def _query(values: dict[str, Any], **changes: Any) -> str:
    """The part of an address after the question mark; what is empty is left out."""
    return "&".join(
        [
            f"{name}={_quoted(str(each))}"
            for name, value in {**values, **changes}.items()
            for each in (value if isinstance(value, list | tuple) else [value])
            if each not in (None, "")
        ]
    )


_quoted = lru_cache(maxsize=4096)(quote_plus)
