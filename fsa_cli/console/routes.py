"""The routes of the console: who may come in, the pages, one address to act, the two assets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from fsa_cli.console.access import ACTIONS, Access, access_of, is_from_here, is_same_origin
from fsa_cli.exceptions import ConfigurationError

if TYPE_CHECKING:
    from fsa_cli.console.answers import Form

__all__ = ["router"]

_PAGES = ("", "runs", "run", "tasks", "task", "coming", "queues", "nodes", "database", "audit")
_LARGEST_FORM = 256 * 1024
# How long an app that stops waits for what its start has begun.
_STOPPING_S = 1


def router(*, access: Callable[..., Any] | None = None) -> APIRouter:
    """The console as routes of an app.

        app.include_router(console.router(access=who), prefix="/ops")

    Args:
        access: A dependency of the app's, `def` or `async def`, that says what whoever asks may do:
            None (nothing), "view", "operate", or a set of `console.ACTIONS`; or a pair of one of
            these and the person's name, which the audit keeps. What it raises is the app's answer.
            Without it the console answers requests of this very machine that came through no
            proxy, and no others.

    Raises:
        ConfigurationError: Jinja2 is not installed.
    """
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        raise ConfigurationError(
            "the console needs jinja2", hint="pip install 'fastapi-sqlalchemy[console]'"
        )
    routes = APIRouter(
        include_in_schema=False, dependencies=[Depends(_permission(access))], lifespan=_prepared
    )
    # One for all pages: FastAPI takes milliseconds for each route, at the start of the app.
    for path in ("/", "/{name}"):
        routes.add_api_route(path, _page, methods=["GET"], name="fsa console")
    routes.add_api_route("/act", _act, methods=["POST"], name="fsa console act")
    routes.add_api_route("/static/{name}", _static, methods=["GET"], name="fsa console static")
    return routes


@contextlib.asynccontextmanager
async def _prepared(_: Any) -> AsyncIterator[None]:
    """While the app runs. What a first page needs is loaded in a thread at its start: that takes
    half a second."""
    stopped = threading.Event()
    thread = threading.Thread(target=_prepare, args=(stopped,), name="fsa console", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        await run_in_threadpool(thread.join, _STOPPING_S)


def _prepare(stopped: threading.Event) -> None:
    from fsa_cli.console import answers

    answers.prepare(stopped)


def _permission(access: Callable[..., Any] | None) -> Callable[..., Any]:
    async def local(request: Request) -> None:
        if not is_from_here(request):
            raise _forbidden("the console is open to this machine alone: router(access=...)")
        request.state.fsa_access = Access(frozenset(ACTIONS))

    if access is None:
        return local

    async def given(request: Request, found: Any = Depends(access)) -> None:  # noqa: B008
        request.state.fsa_access = access_of(found)
        if request.state.fsa_access is None:
            raise _forbidden("you may not see the console")

    return given


def _page(request: Request) -> Response:
    from fsa_cli.console import answers

    name = request.path_params.get("name", "")
    if name not in _PAGES:
        raise HTTPException(404)
    if any("\0" in text for pair in request.query_params.multi_items() for text in pair):
        raise HTTPException(400)  # no text of PostgreSQL's has that character
    return answers.show(request, name, request.state.fsa_access)


async def _act(request: Request) -> Response:
    from fsa_cli.console import answers

    if not is_same_origin(request):
        raise _forbidden("this was not asked from a page of the console")
    form = await _form(request)
    return await run_in_threadpool(answers.act, request, form, request.state.fsa_access)


def _static(request: Request) -> Response:
    from fsa_cli.console.rendering import asset

    found = asset(request, request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    return found


async def _form(request: Request) -> Form:
    """What a form has sent; it needs no multipart parser.

    Raises:
        HTTPException: It is too large, or something else, or has a NUL.
    """
    from urllib.parse import parse_qsl

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415)
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _LARGEST_FORM:
            raise HTTPException(413)
    try:
        pairs = parse_qsl(
            content.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=1000
        )
    except ValueError:
        raise HTTPException(400) from None
    form: dict[str, list[str]] = {}
    for key, value in pairs:
        if "\0" in key + value:
            raise HTTPException(400)
        form.setdefault(key, []).append(value)
    return form


def _forbidden(reason: str) -> HTTPException:
    return HTTPException(403, reason, headers={"Cache-Control": "no-store"})
