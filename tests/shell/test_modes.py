"""`fsa shell`: sandboxed, read-only, echoing; what lies at hand in it; what its prompt says."""

from pathlib import Path

import pytest

from fsa_cli.commands.shell import _mode
from support.processes import write_files

APP = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware, db
    from sqlalchemy import select
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase): ...

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    app = FastAPI(title="shop")
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db", commit_on_exit=True)

    @app.get("/users")
    def users() -> list[str]:
        return list(db.session.scalars(select(User.name).order_by(User.id)))

    @app.post("/users/{name}")
    async def add(name: str) -> None:
        db.async_session.add(User(name=name))
"""
TASKS = """
    from fastapi_sqlalchemy import db
    from fsa_cli import task
    from main import User

    @task
    def add_user(name: str) -> None:
        db.session.add(User(name=name))

    @task
    async def add_user_async(name: str) -> str:
        db.async_session.add(User(name=name))
        return name
"""
PYPROJECT = """
    [tool.fsa.env.production]
    protected = true
    [tool.fsa.env.replica]
    shell = "read-only"
    [tool.fsa.env.plain]
"""
SERIAL = {"postgresql": "serial", "mariadb": "integer auto_increment", "sqlite": "integer"}
TABLE = "create table users (id {} primary key, name varchar(50) not null)"
WRITE_EVERYWHERE = """
session.add(User(name="one"))
session.commit()
db.async_session.add(User(name="two"))
await db.async_session.commit()
run("add_user", "three")
run("add_user_async", "four")
await db.async_session.scalar(select(1))
print(run("add_user_async", "five"), client.post("/users/six").status_code)
session.execute(text("insert into users (name) values ('seven')"))
session.rollback()
session.add(User(name="eight"))
session.flush()
print(client.get("/users").json())
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("shop")
    return write_files(directory, {"pyproject.toml": PYPROJECT}, main=APP, tasks=TASKS)


@pytest.fixture
def database(backend):
    """A database with a table of users, and ann in it."""
    backend.execute(TABLE.format(SERIAL[backend.name]))
    backend.execute("insert into users (name) values ('ann')")
    return backend


@pytest.fixture
def ann(sqlite):
    sqlite.execute(TABLE.format("integer"))
    sqlite.execute("insert into users (name) values ('ann')")
    return sqlite


def test_in_a_sandbox_all_that_was_committed_is_gone_afterwards(fsa, project, database) -> None:
    env = {"FSA_DB_URL": database.url}

    done = fsa("shell", "--sandbox", "-c", WRITE_EVERYWHERE, cwd=project, env=env)

    assert done.returncode == 0, done.stderr
    assert done.stderr == "sandbox: everything was rolled back\n"
    assert done.stdout.splitlines() == [
        "five 200",
        "['ann', 'one', 'two', 'three', 'four', 'five', 'six', 'eight']",
    ]
    assert database.rows("select name from users") == [("ann",)]
    assert database.connections() == 0


def test_a_sandbox_rolls_a_program_that_fails_back_too(fsa, project, ann) -> None:
    program = "session.add(User(name='x')); session.commit(); 1 / 0"

    done = fsa("shell", "--sandbox", "-c", program, cwd=project, env={"FSA_DB_URL": ann.url})

    assert done.returncode == 1
    assert "sandbox: everything was rolled back\nerror: ZeroDivisionError" in done.stderr
    assert ann.rows("select name from users") == [("ann",)]


def test_a_sandbox_serves_an_app_with_only_an_async_driver(
    fsa, write_app, tmp_path, postgresql
) -> None:
    postgresql.execute(TABLE.format("serial"))
    missing = "import sys\n    for n in ('psycopg', 'psycopg2'): sys.modules[n] = None\n"
    write_app(tmp_path, main=f"    {missing}{APP}")
    program = (
        "session.add(User(name='x'))\nawait session.commit()\n"
        "print(await session.scalar(select(func.count()).select_from(User)))"
    )
    env = {"FSA_DB_URL": postgresql.with_driver("asyncpg")}

    done = fsa("shell", "--sandbox", "-c", program, env=env)
    printed = fsa("shell", "-c", "sql('select count(*) from users')", env=env)

    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert printed.stdout.split() == ["count", "0"]


def test_a_read_only_shell_reads_and_the_database_refuses_the_rest(fsa, project, database) -> None:
    program = """
from sqlalchemy.exc import SQLAlchemyError
def tried(work):
    try:
        work()
    except SQLAlchemyError as error:
        session.rollback()
        return "refused"
    return "done"
print(client.get("/users").json())
print(tried(lambda: session.execute(text("delete from users"))))
print(tried(lambda: session.execute(text("create table other (a int)"))))
print(tried(lambda: run("add_user", "x")), tried(lambda: run("add_user_async", "x")))
print(tried(lambda: client.post("/users/x")))
session.add(User(name="x"))
print(tried(session.commit))
db.async_session.add(User(name="x"))
await db.async_session.commit()
"""

    done = fsa("shell", "--read-only", "-c", program, cwd=project, env={"FSA_DB_URL": database.url})

    assert done.returncode == 1
    assert done.stdout.split() == ["['ann']", *["refused"] * 6]
    assert "<fsa -c>, line 18" in done.stderr
    assert database.rows("select name from users") == [("ann",)]


@pytest.mark.parametrize(
    ("default", "sandbox", "read_only", "mode"),
    [
        ("sandbox", None, None, "sandbox"),
        ("sandbox", False, None, "open"),
        ("sandbox", None, False, "sandbox"),
        ("sandbox", None, True, "read-only"),
        ("read-only", None, False, "open"),
        ("read-only", True, None, "sandbox"),
        ("read-only", False, None, "read-only"),
        ("open", True, True, "read-only"),
        ("open", None, None, "open"),
    ],
)
def test_a_flag_overrules_the_environment(default, sandbox, read_only, mode) -> None:
    assert _mode(sandbox, read_only, default) == mode


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--env", "production"], False),
        (["--env", "replica"], False),
        (["--env", "plain"], True),
        (["--env", "production", "--no-sandbox"], True),
    ],
)
def test_the_environment_says_what_kind_of_shell_it_is(fsa, project, ann, words, kept) -> None:
    program = "session.add(User(name='x')); session.commit()"

    fsa("shell", *words, "-c", program, cwd=project, env={"FSA_DB_URL": ann.url})

    assert (len(ann.rows("select name from users")) == 2) is kept


def test_sql_prints_a_table_of_what_the_session_sees(fsa, project, database) -> None:
    program = """
session.add(User(name="a:b"))
sql("select name, name from users where name <> ':x' order by id")
sql("select name from users where name = :name", name="a:b")
sql("insert into users (name) values (:name)", name="c")
sql("select name from users order by id", limit=1)
sql("select name from users where id < 0")
"""

    done = fsa("shell", "-c", program, cwd=project, env={"FSA_DB_URL": database.url})

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "name\tname_2",
        "ann\tann",
        "a:b\ta:b",
        "name",
        "a:b",
        "name",
        "ann",
        "name",
    ]
    assert done.stderr.splitlines() == [
        "2 rows",
        "1 row",
        "1 row; session.commit() commits it",
        "the first 1 rows; limit=None prints all",
        "0 rows",
        "warning: changes that were not committed are rolled back",
    ]


def test_echo_shows_the_sql_of_both_sessions_and_of_tasks_on_stderr(fsa, project, ann) -> None:
    program = """
session.add(User(name="bob")); session.commit()
await db.async_session.scalar(select(User.name))
run("add_user", "cid")
"""

    done = fsa("shell", "--echo", "-c", program, cwd=project, env={"FSA_DB_URL": ann.url})

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = [line.split(maxsplit=1)[1] for line in done.stderr.splitlines() if "sql " in line]
    assert [line for line in lines if line.isupper() and " " not in line] == [
        *["BEGIN", "COMMIT"],
        "BEGIN",
        *["BEGIN", "COMMIT"],
        "ROLLBACK",
    ]
    assert any(line.startswith("INSERT INTO users") for line in lines)
    assert any("('bob',)" in line for line in lines)
    assert any(" ms" in line for line in lines)


def test_client_without_an_http_client_says_what_to_install(fresh_fsa, project, ann) -> None:
    program = (
        "import sys; sys.modules['httpx'] = sys.modules['httpx2'] = None\nclient.get('/users')"
    )

    done = fresh_fsa("shell", "-c", program, cwd=project, env={"FSA_DB_URL": ann.url})

    assert done.returncode == 3
    assert "client needs an HTTP client" in done.stderr
    assert "hint: pip install httpx2" in done.stderr


PROMPTS = {
    "python": ("production sandbox >>> ", "python"),
    "ipython": (r"production sandbox .*In .*\[", "ipython.sqlite"),
    "ptpython": ("production sandbox .*>>>", "ptpython"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_the_prompt_says_where_it_is_and_that_it_is_a_sandbox(
    name, terminal, project, ann, tmp_path
) -> None:
    prompt, history = PROMPTS[name]
    env = {
        "FSA_SHELL": name,
        "FSA_DB_URL": ann.url,
        "FSA_ENV": "production",
        "FSA_STATE_DIR": str(tmp_path / "state"),
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    child = terminal("fsa", "shell", cwd=project, env=env)
    child.expect(r"env +production, protected \(chosen by FSA_ENV\)")
    child.expect("mode +sandbox: everything is rolled back at the end, commits included")
    child.expect(prompt)
    child.sendline("session.add(User(name='x')); session.commit(); sql('select name from users')")
    child.expect("ann.*x.*2 rows")
    child.sendline("len(client.get('/users').json()) + 40")
    child.expect("42")
    child.sendline("exit()")
    child.expect("sandbox: everything was rolled back")
    child.wait()

    assert child.exitstatus == 0
    assert ann.rows("select name from users") == [("ann",)]
    (kept,) = (tmp_path / "state").glob("*/" + history)
    assert kept.stat().st_size > 0
    assert kept.parent.name.startswith(project.name)
