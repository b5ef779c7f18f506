from typing import Any

from apps.model import QUERY, async_url, store, sync_url
from fastapi import FastAPI

from fastapi_sqlalchemy import DBSessionMiddleware, db


def build(case: str, url: str, **options: Any) -> Any:
    app = FastAPI()
    app.add_middleware(
        DBSessionMiddleware, db_url=sync_url(url), async_db_url=async_url(url), **options
    )
    if case == "unused":

        @app.get("/")
        async def unused() -> dict[str, str]:
            return {"name": "ann"}

        return app
    store(url)
    if case == "sync":

        @app.get("/")
        def read() -> dict[str, str]:
            return {"name": db.session.scalars(QUERY).one().name}

    else:

        @app.get("/")
        async def read_async() -> dict[str, str]:
            return {"name": (await db.async_session.scalars(QUERY)).one().name}

    return app
