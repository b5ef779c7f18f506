"""What an app's engine gives its driver beside the URL: TLS, a time limit, a search path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from fastapi_sqlalchemy import Database

__all__ = ["connect_args_of", "engine_of", "known_to_creator"]


def connect_args_of(engine: Engine) -> dict[str, Any]:
    """Its `connect_args`; nothing of an engine that connects by a function of the app's own."""
    known = known_to_creator(engine).get("cparams", {})
    of_url = engine.dialect.create_connect_args(engine.url)[1]
    return {name: value for name, value in known.items() if name not in of_url}


def engine_of(database: Database) -> Engine:
    """Its sync engine; the one inside its async engine, where that is all there is.

    Raises:
        DBSessionError: There is no sync engine, and no loop runs to make an async one for.
    """
    from fastapi_sqlalchemy.exceptions import DBSessionError

    try:
        return database.engine
    except DBSessionError as no_sync_side:
        try:
            return database.async_engine.sync_engine
        except RuntimeError:
            raise no_sync_side from None


def known_to_creator(engine: Engine) -> Mapping[str, Any]:
    """What SQLAlchemy keeps in the function that connects; nothing of an app's own.

    https://github.com/sqlalchemy/sqlalchemy `engine/create.py`.
    """
    creator = engine.pool._creator
    return inspect.getclosurevars(creator).nonlocals if inspect.isfunction(creator) else {}
