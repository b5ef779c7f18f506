import importlib
import logging
import os
from typing import Any

from apps.model import QUERY, async_url, store, sync_url
from fastapi import FastAPI


def build(case: str, url: str) -> Any:
    is_async = case == "async"
    # It asks the dialect which side a URL means.
    own_async_url = async_url(url).replace("+psycopg://", "+psycopg_async://")
    os.environ["SQLALCHEMY_URL"] = own_async_url if is_async else sync_url(url)
    structlog: Any = importlib.import_module("structlog")  # which would print to stdout
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    peer: Any = importlib.import_module("fastapi_sqla")
    app = FastAPI()
    peer.setup_middlewares(app)
    if case == "unused":

        @app.get("/")
        async def unused() -> dict[str, str]:
            return {"name": "ann"}

    else:
        store(url)

    if case == "sync":

        @app.get("/")
        def read(session: peer.Session) -> dict[str, str]:  # type: ignore[name-defined]
            return {"name": session.scalars(QUERY).one().name}

    if is_async:

        @app.get("/")
        async def read_async(session: peer.AsyncSession) -> dict[str, str]:  # type: ignore[name-defined]
            return {"name": (await session.scalars(QUERY)).one().name}

    ready = False

    async def started(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ready
        if not ready:  # in the loop that serves, without a lifespan
            await peer.startup()
            ready = True
        await app(scope, receive, send)

    return started
