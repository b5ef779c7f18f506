"""What users of fastapi-sqlalchemy 0.2.1 wrote keeps working."""

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import starlette
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from packaging.version import Version
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

import fastapi_sqlalchemy.middleware
from fastapi_sqlalchemy import Database, DBSessionMiddleware
from fastapi_sqlalchemy.exceptions import MissingSessionError, SessionNotInitialisedError
from fastapi_sqlalchemy.middleware import DBSession, DBSessionMeta
from support.models import Base, User
from support.processes import Run, write_files


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()
    return url


def count(db: Database) -> int:
    with db():
        return db.session.scalar(select(func.count()).select_from(User)) or 0


def test_its_names_are_where_they_were() -> None:
    assert DBSession is fastapi_sqlalchemy.middleware.db is fastapi_sqlalchemy.db
    assert DBSessionMeta is Database
    assert isinstance(fastapi_sqlalchemy.db, DBSessionMeta)
    assert fastapi_sqlalchemy.middleware.DBSessionMiddleware is DBSessionMiddleware
    assert fastapi_sqlalchemy.exceptions.MissingSessionError is MissingSessionError


def test_annotations_with_the_class_of_db(url: str, db: Database) -> None:
    def users(database: DBSessionMeta) -> int:
        return database.session.scalar(select(func.count()).select_from(User)) or 0

    db.configure(url)
    with db() as session_holder:
        assert users(session_holder) == 0


@pytest.mark.skipif(
    Version(starlette.__version__) < Version("0.41"), reason="Starlette passes none on before 0.41"
)
def test_arguments_by_position(url: str, db: Database) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, url, None, {"echo": False}, {"autoflush": False}, db=db)

    @app.get("/")
    def read() -> bool:
        return db.session.autoflush

    assert TestClient(app).get("/").json() is False
    with db({"autoflush": True}, True):
        assert db.session.autoflush is True


@pytest.mark.parametrize("arguments", [{}, {"db_url": None}, {"db_url": "", "engine_args": {}}])
def test_neither_url_nor_engine_is_its_value_error(arguments: dict[str, Any], db: Database) -> None:
    with pytest.raises(ValueError, match="need to pass a db_url or a custom_engine parameter"):
        DBSessionMiddleware(FastAPI(), db=db, **arguments)


def test_a_custom_engine_wins_over_a_url(url: str, db: Database) -> None:
    engine = create_engine(url)
    DBSessionMiddleware(FastAPI(), "sqlite:///other.db", engine, db=db)
    assert db.engine is engine
    engine.dispose()


@pytest.mark.slow
def test_a_block_right_after_add_middleware_at_import_time(tmp_path: Path, python: Run) -> None:
    write_files(
        tmp_path,
        main="""
            from fastapi import FastAPI
            from fastapi_sqlalchemy import DBSessionMiddleware, db
            from sqlalchemy import text

            app = FastAPI()
            app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")

            with db():
                db.session.execute(text("CREATE TABLE t (n integer)"))
                db.session.execute(text("INSERT INTO t VALUES (7)"))
                db.session.commit()

            @app.get("/")
            def read():
                return db.session.scalar(text("SELECT n FROM t"))
        """,
        use="""
            from starlette.testclient import TestClient
            import main

            print(TestClient(main.app).get("/").json())
        """,
    )
    done = python("-W", "error", "use.py", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


@pytest.fixture(scope="module")
def session_holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """As in its users' suites: one block around many tests, entered outside any of them."""
    database = Database("held")
    database.configure(f"sqlite:///{tmp_path_factory.mktemp('held') / 'held.db'}")
    with database() as holder:
        Base.metadata.create_all(holder.session.connection())
        holder.session.commit()
        yield holder
    database.dispose()


@pytest.mark.parametrize("name", ["ann", "bob"])
def test_a_block_in_a_fixture_of_a_wider_scope_is_open_in_the_tests(
    session_holder: Database, name: str
) -> None:
    session_holder.session.add(User(name=name))
    session_holder.session.commit()
    assert name in session_holder.session.scalars(select(User.name)).all()


@pytest.mark.parametrize("name", ["ann", "bob"])
async def test_a_block_in_a_fixture_of_a_wider_scope_is_open_in_async_tests(
    session_holder: Database, name: str
) -> None:
    assert session_holder.session.scalar(select(func.count()).select_from(User)) is not None


def test_asking_whether_a_session_is_open(url: str, db: Database) -> None:
    def is_open() -> bool:
        try:
            _ = db.session
        except (MissingSessionError, SessionNotInitialisedError):
            return False
        return True

    assert not is_open()
    db.configure(url)
    assert not is_open()
    with db():
        assert is_open()
    assert not is_open()


def test_the_errors_say_what_they_said() -> None:
    assert "No session found! Either you are not currently in a request context" in str(
        MissingSessionError()
    )
    assert "Ensure that DBSessionMiddleware has been initialised before" in str(
        SessionNotInitialisedError()
    )


def test_a_session_by_dependency(url: str, db: Database) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=url, commit_on_exit=True, db=db)

    @app.post("/users/{name}")
    def add(name: str, session: Session = Depends(lambda: db.session)) -> bool:  # noqa: B008
        session.add(User(name=name))
        return session is db.session

    @app.post("/async/{name}")
    async def async_add(name: str, session: Session = Depends(lambda: db.session)) -> bool:  # noqa: B008
        session.add(User(name=name))
        return session is db.session

    client = TestClient(app)
    assert client.post("/users/ann").json() is True
    assert client.post("/async/bob").json() is True
    assert count(db) == 2


def test_close_inside_a_route_and_more_use_after_it(url: str, db: Database) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=url, commit_on_exit=True, db=db)

    @app.post("/")
    def add() -> int:
        db.session.add(User(name="kept"))
        db.session.commit()
        db.session.add(User(name="given up"))
        db.session.flush()
        db.session.close()
        db.session.add(User(name="after"))
        db.session.flush()
        return db.session.scalar(select(func.count()).select_from(User)) or 0

    assert TestClient(app).post("/").json() == 2
    with db():
        assert db.session.scalars(select(User.name)).all() == ["kept", "after"]
    assert db.pool_status()["sync"]["checked_out"] == 0


def test_a_background_function_that_opens_several_blocks(url: str, db: Database) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=url, commit_on_exit=True, db=db)
    counts: list[int] = []

    def later() -> None:
        for number in range(3):
            with db():
                db.session.add(User(name=f"later {number}"))
                db.session.commit()
            with db(commit_on_exit=True):
                db.session.add(User(name=f"at exit {number}"))
            counts.append(count(db))

    @app.post("/")
    def add(tasks: BackgroundTasks) -> None:
        db.session.add(User(name="in the route"))
        tasks.add_task(later)

    assert TestClient(app).post("/").status_code == 200
    assert counts == [3, 5, 7]


def test_a_response_of_400_commits_again_with_rollback_from_status_none(
    url: str, db: Database
) -> None:
    app = FastAPI()
    app.add_middleware(
        DBSessionMiddleware, db_url=url, commit_on_exit=True, rollback_from_status=None, db=db
    )

    @app.post("/")
    def add() -> None:
        db.session.add(User(name="ann"))
        raise HTTPException(409)

    assert TestClient(app).post("/").status_code == 409
    assert count(db) == 1


def test_a_block_that_fails_rolls_back_and_restores_the_outer_one(url: str, db: Database) -> None:
    db.configure(url)
    with db():
        outer = db.session
        with pytest.raises(RuntimeError, match="inside"), db(commit_on_exit=True):
            db.session.add(User(name="lost"))
            assert db.session is not outer
            raise RuntimeError("inside")
        assert db.session is outer
    assert count(db) == 0


@pytest.mark.slow
def test_deleting_its_modules_starts_anew(tmp_path: Path, python: Run) -> None:
    """As its own suite does between tests, and many of its users'."""
    script = dedent("""
        import sys
        from fastapi import FastAPI
        from starlette.testclient import TestClient

        from fastapi_sqlalchemy import DBSessionMiddleware, db
        from fastapi_sqlalchemy.exceptions import MissingSessionError, SessionNotInitialisedError

        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url="sqlite:///old.db")

        @app.get("/")
        def read():
            return str(db.session.get_bind().url)

        assert TestClient(app).get("/").json() == "sqlite:///old.db"
        for attempt in range(3):
            for module in ("fastapi_sqlalchemy", "fastapi_sqlalchemy.middleware"):
                del sys.modules[module]
            import fastapi_sqlalchemy

            new = fastapi_sqlalchemy.db
            assert new is not db and not new.is_configured
            try:
                new.session
            except SessionNotInitialisedError:
                pass
            new_app = FastAPI()
            new_app.add_middleware(
                fastapi_sqlalchemy.DBSessionMiddleware, db_url="sqlite:///new.db"
            )
            try:
                new.session
            except MissingSessionError:
                pass
            with new():
                assert str(new.session.get_bind().url) == "sqlite:///new.db"

        # What was made before goes on with what it was made with.
        assert TestClient(app).get("/").json() == "sqlite:///old.db"
    """)
    done = python("-W", "error", "-c", script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
