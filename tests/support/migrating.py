"""An app with a table to migrate, and the hook that keeps the ledger out of its revisions."""

__all__ = ["APP", "HOOK"]

APP = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    from sqlalchemy import String
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase): ...

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(80))

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
"""
#: What the manual has a team write in its env.py, in place of `connection=connection,`.
HOOK = "connection=connection, include_name=include_name,"
