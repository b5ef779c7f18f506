import importlib
import sys
from typing import Any

from apps.model import QUERY, async_url, store
from fastapi import FastAPI


def build(case: str, url: str) -> Any:
    peer: Any = importlib.import_module("fastapi_async_sqlalchemy")
    assert "apps" not in peer.__name__, sys.path
    app = FastAPI()
    app.add_middleware(peer.SQLAlchemyMiddleware, db_url=async_url(url))
    if case == "unused":

        @app.get("/")
        async def unused() -> dict[str, str]:
            return {"name": "ann"}

        return app
    store(url)

    @app.get("/")
    async def read_async() -> dict[str, str]:
        return {"name": (await peer.db.session.scalars(QUERY)).one().name}

    return app
