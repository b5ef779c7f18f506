"""What FastAPI's users write by hand."""

from collections.abc import Iterator
from typing import Annotated, Any

from apps.model import QUERY, async_url, store, sync_url
from fastapi import Depends, FastAPI
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker


def build(case: str, url: str) -> Any:
    store(url)
    app = FastAPI()
    make_session = sessionmaker(create_engine(sync_url(url)))
    make_async_session = async_sessionmaker(create_async_engine(async_url(url)))

    def get_db() -> Iterator[Session]:
        session = make_session()
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()

    if case == "sync":

        @app.get("/")
        def read(session: Annotated[Session, Depends(get_db)]) -> dict[str, str]:
            return {"name": session.scalars(QUERY).one().name}

    else:

        @app.get("/")
        async def read_async() -> dict[str, str]:
            async with make_async_session() as session:
                return {"name": (await session.scalars(QUERY)).one().name}

    return app
