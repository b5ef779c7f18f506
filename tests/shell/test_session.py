"""`fsa shell`: programs as real processes, prompts on a real pty."""

import re
from pathlib import Path

import pytest
from sqlalchemy.orm import declarative_base

from fsa_cli.database.models import mapped_classes, model_names

APP = """
    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase): ...

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    app = FastAPI(title="shop")
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
"""
TASKS = """
    from fastapi_sqlalchemy import db
    from fsa_cli import TaskContext, task
    from main import User

    @task
    def add_user(name: str, context: TaskContext, *, shout: bool = False) -> str:
        db.session.add(User(name=name))
        return name.upper() if shout else name

    @task
    async def add_user_async(name: str) -> str:
        db.async_session.add(User(name=name))
        return name

    @task
    def fail():
        raise LookupError("nothing there")
"""
TABLE = "create table users (id {serial} primary key, name varchar(50) not null)"
SERIAL = {
    "postgresql": "serial",
    "mariadb": "integer auto_increment",
    "sqlite": "integer",
}
COUNT = "session.scalar(select(func.count()).select_from(User))"


@pytest.fixture
def project(write_app, tmp_path: Path) -> Path:
    return write_app(tmp_path, main=APP, tasks=TASKS)


@pytest.fixture
def database(backend):
    """A database with an empty table of users."""
    backend.execute(TABLE.format(serial=SERIAL[backend.name]))
    return backend


@pytest.fixture
def code(fsa, project):
    """What `fsa shell -c CODE` prints."""

    def run(source: str, *args: str, **env: str) -> str:
        done = fsa("shell", "-c", source, *args, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_code_counts_rows_through_both_sessions_and_models(code, database) -> None:
    source = """
session.add(User(name="Ada"))
session.commit()
print(session.query(User).count())
print(await db.async_session.scalar(select(func.count()).select_from(User)))
print(session.execute(text("select name from users")).scalar_one())
"""

    assert code(source, FSA_DB_URL=database.url).split() == ["1", "1", "Ada"]
    assert database.connections() == 0


def test_a_sync_session_needs_no_async_driver(fsa, project, sqlite) -> None:
    sqlite.execute(TABLE.format(serial="integer"))
    program = "import sys\nsys.modules['aiosqlite'] = None\n"
    source = (project / "main.py").read_text()
    (project / "main.py").write_text(program + source)

    done = fsa("shell", "-c", "print(session.query(User).count())", env={"FSA_DB_URL": sqlite.url})

    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_session_is_the_async_one_where_only_that_has_a_driver(fsa, project, postgresql) -> None:
    program = "import sys\nfor n in ('psycopg', 'psycopg2'): sys.modules[n] = None\n"
    (project / "main.py").write_text(program + (project / "main.py").read_text())

    done = fsa(
        "shell",
        "-c",
        "print(await session.scalar(text('select 41 + 1')))",
        env={"FSA_DB_URL": postgresql.with_driver("asyncpg")},
    )

    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


@pytest.mark.parametrize("called", ["session.scalar(text('select 1'))", "run('add_user', 'ann')"])
def test_what_to_await_is_said_where_nothing_can_be_awaited(fsa, project, called, sqlite) -> None:
    sqlite.execute(TABLE.format(serial="integer"))

    done = fsa("shell", "-c", f"await {called}", env={"FSA_DB_URL": sqlite.url})

    assert done.returncode == 1
    hint = "is not awaited; db.async_session is: await db.async_session.scalar(...)"
    assert f"hint: {called.partition('(')[0].partition('.')[0]} {hint}\n" in done.stderr


def test_a_file_is_run_with_its_arguments_as_a_program(fsa, project) -> None:
    (project / "report.py").write_text(
        "import sys, asyncio\n"
        "async def later(): return __name__\n"
        "print(sys.argv, await later(), app.title)\n"
        "def nested(): return User.__name__\n"
        "print(nested())\n"
    )

    done = fsa("shell", "report.py", "--year", "2026", "--json")

    assert done.returncode == 0, done.stderr
    assert done.stdout == "['report.py', '--year', '2026', '--json'] __main__ shop\nUser\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--readonly", "-c", "print('ran')"], "No such option: --readonly"),
        (["-c", "print('ran')", "--sandbx"], "No such option: --sandbx"),
        (["report.py", "--sandbox"], "--sandbox stands behind report.py"),
        (["report.py", "2026", "--read-only"], "--read-only stands behind report.py"),
    ],
)
def test_what_was_meant_to_protect_and_does_not_runs_nothing(fsa, project, words, said) -> None:
    (project / "report.py").write_text("print('ran')\n")

    done = fsa("shell", *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_what_stands_behind_two_dashes_is_the_programs(fsa, project) -> None:
    (project / "report.py").write_text("import sys\nprint(sys.argv)\n")

    assert fsa("shell", "report.py", "--", "--sandbox").stdout == "['report.py', '--sandbox']\n"


def test_a_program_that_awaits_nothing_may_run_a_loop_of_its_own(code) -> None:
    assert code("import asyncio\nasync def f(): return 7\nprint(asyncio.run(f()))") == "7"


@pytest.mark.parametrize("words", [[], ["-"], ["-", "an", "argument"]])
def test_a_program_is_read_from_standard_input(fsa, project, words) -> None:
    program = "import sys\nprint(app.title, sys.argv[1:])"

    done = fsa("shell", *words, input=program)

    assert done.stdout.strip() == f"shop {words[1:]}"


def test_what_is_not_committed_is_rolled_back_and_said(fsa, project, database) -> None:
    env = {"FSA_DB_URL": database.url}

    forgotten = fsa("shell", "-c", "session.add(User(name='x')); session.flush()", env=env)
    kept = fsa("shell", "-c", "session.add(User(name='y')); session.commit()", env=env)
    looked = fsa("shell", "-c", "print(session.query(User).all())", env=env)

    assert forgotten.returncode == 0
    assert "changes that were not committed are rolled back" in forgotten.stderr
    assert kept.stderr == looked.stderr == ""
    assert database.rows("select name from users") == [("y",)]


def test_an_error_is_reported_with_its_line_and_rolled_back(fsa, project, database) -> None:
    (project / "job.py").write_text("session.add(User(name='x'))\nsession.flush()\n1 / 0\n")

    done = fsa("shell", "job.py", env={"FSA_DB_URL": database.url})

    assert done.returncode == 1
    assert "error: ZeroDivisionError: division by zero" in done.stderr
    assert "job.py, line 3" in done.stderr
    assert len(done.stderr.splitlines()) <= 8
    assert database.rows("select name from users") == []


@pytest.mark.parametrize(("statement", "code"), [("exit(3)", 3), ("exit()", 0)])
def test_a_programs_exit_code_is_its_own(fsa, project, statement, code) -> None:
    assert fsa("shell", "-c", f"import sys; sys.{statement}").returncode == code


def test_a_syntax_error_is_reported_like_any_other(fsa, project) -> None:
    done = fsa("shell", "-c", "a = 1\nb = (")

    assert done.returncode == 1
    assert "<fsa -c>, line 2" in done.stderr
    assert "SyntaxError" in done.stderr


def test_a_file_that_is_not_there_is_exit_2(fsa, project) -> None:
    done = fsa("shell", "nowhere.py")

    assert done.returncode == 2
    assert "nowhere.py cannot be read" in done.stderr


def test_run_runs_a_task_and_commits_it(code, database) -> None:
    source = """
from tasks import add_user
print(run("add_user", "one"), run(add_user, name="two", shout=True), run("add_user_async", "three"))
try:
    run("fail")
except LookupError as error:
    print(error)
print(sorted(tasks))
"""

    assert code(source, FSA_DB_URL=database.url).splitlines() == [
        "one TWO three",
        "nothing there",
        "['add_user', 'add_user_async', 'fail']",
    ]
    rows = database.rows("select name from users order by id")
    assert rows == [("one",), ("two",), ("three",)]


def test_of_two_classes_of_one_name_both_can_be_reached(fsa, write_app, tmp_path) -> None:
    model = """
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    class Base(DeclarativeBase): ...
    class User(Base):
        __tablename__ = "{table}"
        id: Mapped[int] = mapped_column(primary_key=True)
    """
    write_app(
        tmp_path,
        {
            "billing/models.py": model.format(table="billed"),
            "shop/models.py": model.format(table="shoppers"),
        },
        main=APP.replace("class User(Base)", "class Country(Base)")
        + "\n    import billing.models, shop.models\n",
    )

    done = fsa(
        "shell",
        "-c",
        "print(User.__tablename__, billing.models.User is User, shop.models.User.__tablename__)",
    )

    assert done.stdout.split() == ["billed", "True", "shoppers"], done.stderr


def test_every_kind_of_mapped_class_is_found() -> None:
    from sqlalchemy import Column, Integer, Table
    from sqlalchemy.orm import DeclarativeBase, registry

    class New(DeclarativeBase): ...

    class Declared(New):
        __tablename__ = "declared"
        id = Column(Integer, primary_key=True)

    class Old(declarative_base()):  # type: ignore[misc]
        __tablename__ = "old"
        id = Column(Integer, primary_key=True)

    class Imperative: ...

    mapping = registry()
    mapping.map_imperatively(
        Imperative, Table("imperative", mapping.metadata, Column("id", Integer, primary_key=True))
    )

    found = mapped_classes()

    assert {Declared, Old, Imperative} <= set(found)
    assert New not in found
    assert model_names([Declared, Old]) == ({"Declared": Declared, "Old": Old}, [])


# Escape sequences may stand between any two parts of a prompt.
PROMPTS = {"python": ">>> ", "ipython": r"In .*\[", "ptpython": ">>>"}


@pytest.fixture(params=PROMPTS)
def prompt(request, terminal, project, database, tmp_path):
    """A shell at its prompt; `say(line, expected)` types a line and waits for what it shows."""
    env = {
        "FSA_SHELL": request.param,
        "FSA_DB_URL": database.url,
        "FSA_STATE_DIR": str(tmp_path / "state"),
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    child = terminal("fsa", "shell", cwd=project, env=env)
    child.expect("names .*User")
    child.expect(PROMPTS[request.param])

    def say(line: str, expected: str) -> None:
        child.sendline(line)
        child.expect(expected)

    child.say = say
    return child


def test_the_prompt_awaits_and_recovers_and_says_what_is_lost(prompt, database) -> None:
    # What is expected is never in what was typed: the terminal echoes that.
    prompt.say(f"{COUNT} + 40", "40")
    prompt.say("6 * await db.async_session.scalar(text('select 11'))", "66")
    prompt.say("session.add(User(name='lost'))", "")
    prompt.say("session.execute(text('select * from no' + 'where'))", "nowhere")
    prompt.expect("rolled back: what was not committed is gone")
    prompt.say(f"{COUNT} + 50", "50")
    prompt.say("await db.async_session.execute(text('select * from no' + 'body'))", "nobody")
    prompt.say("70 + await db.async_session.scalar(text('select 7'))", "77")
    prompt.say("session.add(User(name='kept'))", "")
    prompt.say("1 + 'mis' 'take'", "TypeError")
    prompt.say("await session.scalar(text('select 1'))", "hint: session is not awaited; db.async")
    prompt.say("session.commit(); print('com' + 'mitted')", "committed")
    prompt.say(
        "session.add(User(name='forgotten')); session.flush(); print('flu' + 'shed')", "flushed"
    )
    prompt.say("exit()", "changes that were not committed are rolled back")
    prompt.wait()

    assert prompt.exitstatus == 0
    assert database.rows("select name from users") == [("kept",)]
    assert database.connections() == 0


def test_an_unknown_prompt_is_named_with_those_there_are(terminal, project) -> None:
    child = terminal("fsa", "shell", cwd=project, env={"FSA_SHELL": "bpython"})

    child.expect("there is no prompt 'bpython' for fsa shell")
    child.expect("ipython, ptpython, python")
    child.wait()

    assert child.exitstatus == 3


def test_the_plain_prompt_has_history_and_completion(terminal, project, tmp_path) -> None:
    env = {"FSA_SHELL": "python", "FSA_STATE_DIR": str(tmp_path / "state")}
    first = terminal("fsa", "shell", cwd=project, env=env)
    first.expect(">>> ")
    first.sendline("12345 + 1")
    first.expect("12346")
    first.expect(">>> ")
    first.sendeof()
    first.wait()

    second = terminal("fsa", "shell", cwd=project, env=env)
    second.expect(">>> ")
    second.send("\x1b[A")  # the line before
    second.expect(re.escape("12345 + 1"))
    second.sendline("1")
    second.expect("12356")  # 12345 + 11
    second.expect(">>> ")
    second.send("app.tit\t")
    second.expect("app.title")
    second.sendline(".upper()")
    second.expect("SHOP")
    second.expect(">>> ")
    second.sendeof()
    second.wait()

    assert second.exitstatus == 0
