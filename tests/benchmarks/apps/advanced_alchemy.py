import importlib
from typing import Annotated, Any

from apps.model import QUERY, async_url, store, sync_url
from fastapi import Depends, FastAPI


def build(case: str, url: str) -> Any:
    peer: Any = importlib.import_module("advanced_alchemy.extensions.fastapi")
    app = FastAPI()
    is_sync = case == "sync"
    config = (
        peer.SQLAlchemySyncConfig(connection_string=sync_url(url), commit_mode="autocommit")
        if is_sync
        else peer.SQLAlchemyAsyncConfig(connection_string=async_url(url), commit_mode="autocommit")
    )
    alchemy = peer.AdvancedAlchemy(config=config, app=app)
    if case == "unused":

        @app.get("/")
        async def unused() -> dict[str, str]:
            return {"name": "ann"}

        return app
    store(url)
    if is_sync:

        @app.get("/")
        def read(session: Annotated[Any, Depends(alchemy.provide_session())]) -> dict[str, str]:
            return {"name": session.scalars(QUERY).one().name}

    else:

        @app.get("/")
        async def read_async(
            session: Annotated[Any, Depends(alchemy.provide_session())],
        ) -> dict[str, str]:
            return {"name": (await session.scalars(QUERY)).one().name}

    return app
