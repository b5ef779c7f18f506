"""From a request to a page, and from a form to what it asks for."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from fastapi_sqlalchemy.exceptions import DBSessionError
from fsa_cli.console import actions, rendering
from fsa_cli.console.access import ACTIONS, Access
from fsa_cli.console.collector import uncollected
from fsa_cli.console.dry_run import is_possible
from fsa_cli.console.pages import NAVIGATION, PAGES, Asked, NotThere
from fsa_cli.console.source import Source, source_here
from fsa_cli.database.identity import database_name
from fsa_cli.exceptions import DatabaseUnreachable, FsaError, LedgerUnusable
from fsa_cli.ledger.access import reached
from fsa_cli.ledger.time import instant_of

__all__ = ["Form", "act", "prepare", "show"]

Form = Mapping[str, list[str]]

_PREPARED = ("", "runs", "tasks", "queues", "nodes", "audit")
_is_prepared = threading.Lock()


def show(request: Request, name: str, access: Access) -> Response:
    """The page of that name; 304 if the browser has it as it is."""
    try:
        source = source_here()
        with reached(source.ledger), source.ledger.keeping_a_connection():
            if not source.is_there():
                return _message(
                    request,
                    source,
                    access,
                    "There is no ledger of runs yet.",
                    "fsa scheduler start creates it, or fsa scheduler init.",
                    200,
                )
            return _shown(request, source, name, access)
    except FsaError as exc:
        return _failed(request, exc, access)


def act(request: Request, form: Form, access: Access) -> Response:
    """Do what a form asks for, and lead to the page that shows it."""
    try:
        source = source_here()
        with reached(source.ledger):
            source.ledger.create()
            if form.get("action") == ["dry-run"]:
                context = {
                    **_common(source, access, "task"),
                    "report": actions.rehearse(source, form, access),
                    "now": instant_of(source.fingerprint().now_ms),
                }
                return rendering.page(request, "dry_run.html", context)
            location = actions.perform(source, form, access)
    except FsaError as exc:
        return _failed(request, exc, access)
    return RedirectResponse(
        location, 303, headers={**rendering.HEADERS, "Cache-Control": "no-store"}
    )


def prepare(stopped: threading.Event) -> None:
    """Load what a first page needs, once for each process: nobody is to wait for that.

    Without a ledger, or with one that is not reached, whoever asks for a page is told. No
    connection stays open.
    """
    if _is_prepared.acquire(blocking=False):
        rendering.prepare()
        if not stopped.is_set():
            _make_pages(stopped)


def _make_pages(stopped: threading.Event) -> None:
    """Make pages that nobody sees: SQLAlchemy compiles the statements."""
    with contextlib.suppress(FsaError, DBSessionError):
        source = source_here()
        try:
            with reached(source.ledger), source.ledger.keeping_a_connection():
                if source.is_there():
                    asked = Asked(source, QueryParams(), source.fingerprint())
                    for name in _PREPARED:
                        if not stopped.is_set():
                            PAGES[name].context(asked)
        finally:
            source.ledger.dispose()


def _shown(request: Request, source: Source, name: str, access: Access) -> Response:
    page = PAGES[name].at_span(request.query_params)
    found = source.fingerprint()
    etag = rendering.etag_of(
        found.text,
        found.now_ms // page.step_ms,
        name,
        request.url.query,
        sorted(access.actions),
        access.name,
    )
    unchanged = rendering.unchanged(request, etag)
    if unchanged is not None:
        return unchanged
    asked = Asked(source, request.query_params, found)
    with uncollected():
        try:
            context = page.context(asked)
        except NotThere as exc:
            return _message(request, source, access, str(exc).capitalize() + ".", "", 404)
        if context.pop("is_unfinished", False):  # the next answer has more, and is another page
            etag = rendering.etag_of(uuid.uuid4())
        common = _common(source, access, name, etag)
        response = rendering.page(request, page.template, {**common, **context, "now": asked.now})
    response.headers["ETag"] = etag
    return response


def _common(source: Source | None, access: Access, name: str, etag: str = "") -> dict[str, Any]:
    """What each page shows around its own."""
    environment = source.environment if source is not None else None
    allowed = {
        action
        for action in ACTIONS
        if access.may(action) and not (environment and actions.prohibited(environment, action))
    }
    protected = environment is not None and environment.protected
    return {
        "current": name,
        "navigation": NAVIGATION,
        "allowed": allowed,
        "person": access.name,
        "namespace": source.ledger.namespace if source is not None else "",
        "where": source.ledger.where if source is not None else "",
        "environment": environment.name if environment is not None else None,
        "asks_for": database_name(actions.url_of(source)) if source and protected else None,
        "etag": etag,
        "can_rehearse": "run" in allowed and is_possible(),
        "new_key": lambda: uuid.uuid4().hex,
    }


def _message(
    request: Request,
    source: Source | None,
    access: Access,
    text: str,
    hint: str,
    status: int,
    details: Sequence[str] = (),
) -> Response:
    context = {
        **_common(source, access, ""),
        "text": text,
        "details": details,
        "hint": hint,
        "now": None,
    }
    response = rendering.page(request, "message.html", context, status)
    response.headers["Cache-Control"] = "no-store"
    if status == 503 and request.method == "GET":
        response.headers["Refresh"] = "5"
    return response


def _failed(request: Request, error: FsaError, access: Access) -> Response:
    """An error as a page. It says no more than `fsa` says, with passwords masked."""
    status = 503 if isinstance(error, DatabaseUnreachable | LedgerUnusable) else 400
    if isinstance(error, actions.Forbidden):
        status = 403
    return _message(request, None, access, error.message, error.hint or "", status, error.details)
