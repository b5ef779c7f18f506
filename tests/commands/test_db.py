"""`fsa db show | table | query | create | check`, each as a real process."""

import csv
import io
import json
from pathlib import Path

import pytest

APP = """
    import os
    from datetime import datetime

    from fastapi import FastAPI
    from fastapi_sqlalchemy import DBSessionMiddleware
    from sqlalchemy import ForeignKey, String, func
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase): ...

    class Country(Base):
        __tablename__ = "countries"
        code: Mapped[str] = mapped_column(String(2), primary_key=True)

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(80), index=True)
        country_code: Mapped[str | None] = mapped_column(ForeignKey(Country.code))
        born: Mapped[datetime] = mapped_column(server_default=func.now())

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
"""
HIDE = "import sys\nfor name in {names}: sys.modules[name] = None\n"
SYNC_DRIVERS = {
    "postgresql": ("psycopg", "psycopg2", "pg8000"),
    "mariadb": ("pymysql", "MySQLdb", "mariadb", "mysql"),
    "sqlite": (),
}
ASYNC_DRIVER = {"postgresql": "asyncpg", "mariadb": "asyncmy", "sqlite": "aiosqlite"}
TABLES = """
    CREATE TABLE countries (code varchar(2) PRIMARY KEY);
    CREATE TABLE users (
        id integer PRIMARY KEY,
        name varchar(80) NOT NULL,
        country_code varchar(2),
        born timestamp DEFAULT CURRENT_TIMESTAMP NOT NULL,
        FOREIGN KEY (country_code) REFERENCES countries (code)
    );
    CREATE INDEX ix_users_name ON users (name);
    INSERT INTO countries VALUES ('de'), ('fr');
    INSERT INTO users (id, name, country_code) VALUES (1, 'Ada', 'de'), (2, 'Zoë; 50%', NULL);
"""


@pytest.fixture
def project(write_app, tmp_path: Path) -> Path:
    return write_app(tmp_path, main=APP)


@pytest.fixture
def db(fsa, project, backend):
    """`fsa db *words` on an empty database of each kind."""

    def call(*words: str, **options):
        env = {"FSA_DB_URL": backend.url, **options.pop("env", {})}
        return fsa("db", *words, env=env, **options)

    return call


@pytest.fixture
def filled(db, backend):
    """The same with two tables, two countries and two users."""
    backend.execute(TABLES)
    return db


def test_create_makes_the_missing_tables_and_check_says_what_differs(db, backend) -> None:
    differs = db("check")
    assert differs.returncode == 5
    assert differs.stdout.splitlines() == [
        "what\ttable\tcolumn\tdetail",
        "missing table\tcountries\t\tmain.Country",
        "missing table\tusers\t\tmain.User",
    ]
    assert "hint: fsa db create" in differs.stderr

    made = db("create")
    assert (made.returncode, made.stdout) == (0, "countries\nusers\n"), made.stderr
    assert backend.rows("SELECT count(*) FROM users") == [(0,)]
    again = db("create", "--json")
    assert json.loads(again.stdout) == {"created": []}

    backend.execute("ALTER TABLE users DROP COLUMN born")
    if backend.name != "sqlite":  # which adds none without a default
        backend.execute("ALTER TABLE users ADD COLUMN age integer NOT NULL")
    backend.execute("ALTER TABLE users ADD COLUMN note varchar(9)")
    changed = db("check", "--json")
    assert changed.returncode == 5
    document = json.loads(changed.stdout)
    assert document["ok"] is False
    assert document["migrations"] is None
    found = {(each["what"], each["table"], each["column"]) for each in document["differences"]}
    required = set() if backend.name == "sqlite" else {("unknown column", "users", "age")}
    assert found == {("missing column", "users", "born")} | required
    assert json.loads(changed.stderr)["error"] == "schema_behind"


def test_show_lists_tables_with_rows_sizes_and_indexes(filled, backend) -> None:
    document = json.loads(filled("show", "--json").stdout)

    assert document["size_bytes"] > 0
    tables = {each["name"]: each for each in document["tables"]}
    assert set(tables) == {"countries", "users"}
    assert (tables["users"]["rows"], tables["users"]["rows_are"]) == (2, "exact")
    assert tables["users"]["size_bytes"] > 0
    assert "ix_users_name" in tables["users"]["indexes"]

    piped = filled("show")
    assert piped.stdout.splitlines()[0] == "table\trows\tare\tsize\tindexes"
    assert backend.location.database in piped.stderr
    backend.assert_released()


def test_table_shows_one_table_in_full(filled) -> None:
    document = json.loads(filled("table", "User", "--rows", "1", "--json").stdout)

    assert document["name"] == "users"
    columns = {each["name"]: each for each in document["columns"]}
    assert list(columns) == ["id", "name", "country_code", "born"]
    assert columns["id"]["key"] == "primary"
    assert columns["country_code"]["key"] == "countries.code"
    assert columns["name"]["type"] == "varchar(80)"
    assert (columns["name"]["nullable"], columns["country_code"]["nullable"]) == (False, True)
    assert {each["kind"] for each in document["constraints"]} == {"primary", "foreign"}
    assert "ix_users_name" in {each["name"] for each in document["indexes"]}
    assert document["rows"][0]["name"] == "Ada"

    unknown = filled("table", "user")
    assert unknown.returncode == 2
    assert "did you mean users" in unknown.stderr


def test_query_gives_a_table_json_and_csv(filled) -> None:
    statement = "select name as n, '50%' as n, ':x' as p from users order by id"

    assert filled("query", statement).stdout.splitlines() == [
        "n\tn_2\tp",
        "Ada\t50%\t:x",
        "Zoë; 50%\t50%\t:x",
    ]
    assert json.loads(filled("query", statement, "--json", "--limit", "1").stdout) == [
        {"n": "Ada", "n_2": "50%", "p": ":x"}
    ]
    from_stdin = filled("query", "-", "--csv", input=statement)
    assert list(csv.reader(io.StringIO(from_stdin.stdout))) == [
        ["n", "n_2", "p"],
        ["Ada", "50%", ":x"],
        ["Zoë; 50%", "50%", ":x"],
    ]


@pytest.mark.parametrize("flag", ["--csv", "--json", ""])
def test_a_secret_in_a_row_is_masked_and_takes_nothing_with_it(filled, flag: str) -> None:
    statement = (
        "select 'Authorization: Bearer abc' as note, 'two' as b, 'hunter2' as password, 4 as n "
        "union all select 'password=', 'two', 'hunter3', 5"
    )
    text = filled("query", statement, *([flag] if flag else [])).stdout
    if flag == "--json":
        rows = [[str(cell) for cell in each.values()] for each in json.loads(text)]
    else:
        _, *rows = csv.reader(io.StringIO(text), delimiter="," if flag else "\t")
    assert sorted(rows) == [
        ["Authorization: ***", "two", "***", "4"],
        ["password=", "two", "***", "5"],
    ]


def test_json_of_the_database_is_json_in_csv(fsa, project, postgresql) -> None:
    """Elsewhere a driver gives it as text."""
    statement = """select '{"password": "x", "n": [1, null, true]}'::jsonb as j, 2 as b"""
    told = fsa("db", "query", statement, "--csv", env={"FSA_DB_URL": postgresql.url}).stdout
    _, (document, two) = csv.reader(io.StringIO(told))
    assert json.loads(document) == {"password": "***", "n": [1, None, True]}
    assert two == "2"


READER = """
import sys
from fsa_cli.database import query
from fsa_cli.project.loader import load
from fsa_cli.project.settings import read
db = load(read()).database()
for statement in sys.argv[1:]:
    try:
        print(statement, query.run(db, statement, lambda columns, rows: list(rows)))
    except Exception as exc:
        print("refused")
"""


def test_query_cannot_write_whatever_the_statement_says(filled, python, project, backend) -> None:
    statements = [
        "insert into countries values ('it')",
        "update users set name = 'x'",
        "drop table users",
        "create table evil (id integer)",
        "select 1; delete from users",
        "commit; begin; delete from users; commit",
    ]

    done = python("-c", READER, *statements, env={"FSA_DB_URL": backend.url})
    one = filled("query", "delete from users")

    assert done.stdout.splitlines() == ["refused"] * len(statements), done.stderr
    assert (one.returncode, one.stdout) == (1, "")
    assert "db query only reads" in one.stderr
    assert backend.rows("SELECT count(*), min(name) FROM users") == [(2, "Ada")]
    assert backend.rows("SELECT count(*) FROM countries") == [(2,)]


def test_a_statement_cannot_talk_postgresql_out_of_reading_only(
    python, project, postgresql
) -> None:
    """Also with psycopg2, which sends several statements at once as psycopg does."""
    postgresql.execute("CREATE TABLE kept (id integer)")
    statements = [
        "rollback; set session characteristics as transaction read write; drop table kept",
        "do $$ begin set transaction read write; drop table kept; end $$",
        "with gone as (delete from kept returning id) select * from gone",
    ]
    for driver in ("psycopg", "psycopg2"):
        env = {"FSA_DB_URL": postgresql.with_driver(driver)}
        done = python("-c", READER, *statements, "select 1 as one", env=env)
        assert done.stdout.splitlines() == ["refused"] * 3 + ["select 1 as one [(1,)]"], done
    assert postgresql.rows("SELECT to_regclass('kept')::text") == [("kept",)]


def test_a_wrong_statement_is_reported_with_the_databases_message(
    filled, backend, tmp_path
) -> None:
    (tmp_path / "wrong.sql").write_text("select nope from users")

    done = filled("query", "@wrong.sql", "--json")

    error = json.loads(done.stderr)
    assert (done.returncode, error["error"]) == (1, "statement_failed")
    assert "nope" in error["message"]
    assert error["hint"] == "fsa db table NAME shows the columns of a table"
    assert filled("query", "@missing.sql").returncode == 2
    assert filled("query", " ").returncode == 2
    assert "hint: fsa db show lists" in filled("query", "select * from userz").stderr
    assert "hint: fsa db table NAME" in filled("query", "select nam from users").stderr


def test_many_rows_stream_and_an_answer_may_have_none(filled, backend) -> None:
    many = (
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 900)"
        " select i from n"
    )

    lines = filled("query", many, "--csv").stdout.splitlines()
    assert (lines[0], lines[1], lines[-1], len(lines)) == ("i", "1", "900", 901)
    assert filled("query", "select id from users where id = 9").stdout == "id\n"


def test_a_query_shows_the_dates_that_python_has_none_for(fsa, project, postgresql) -> None:
    sql = """select 'infinity'::date as until, '-infinity'::timestamp as since,
        'infinity'::timestamptz as ever, '0044-03-15 BC'::date as ides, '2026-01-02'::date as day"""

    done = fsa("db", "query", sql, "--json", env={"FSA_DB_URL": postgresql.url})

    assert done.returncode == 0, done.stderr
    shown = ["infinity", "-infinity", "infinity", "0044-03-15 BC", "2026-01-02"]
    assert list(json.loads(done.stdout)[0].values()) == shown


def test_only_an_async_driver_will_do(fsa, project, backend) -> None:
    names = SYNC_DRIVERS[backend.name]
    (project / "main.py").write_text(HIDE.format(names=names) + (project / "main.py").read_text())
    env = {"FSA_DB_URL": backend.with_driver(ASYNC_DRIVER[backend.name])}

    assert fsa("db", "create", env=env).stdout == "countries\nusers\n"
    assert fsa("db", "query", "select count(*) as n from users", env=env).stdout == "n\n0\n"
    assert fsa("db", "query", "drop table users", env=env).returncode == 1
    assert json.loads(fsa("db", "show", "--json", env=env).stdout)["tables"][1]["rows"] == 0
    backend.assert_released()


def test_large_tables_are_estimated_and_exact_counts_them(fsa, project, postgresql) -> None:
    postgresql.execute("CREATE TABLE big AS SELECT repeat('x', 900) FROM generate_series(1, 20000)")
    postgresql.execute("ANALYZE big")
    postgresql.execute("CREATE SCHEMA other CREATE TABLE small (id integer)")
    env = {"FSA_DB_URL": postgresql.url}

    big, small = json.loads(fsa("db", "show", "--json", env=env).stdout)["tables"]
    assert (big["name"], big["rows_are"]) == ("big", "estimated")
    assert big["rows"] == pytest.approx(20000, rel=0.1)
    assert (small["name"], small["rows"], small["rows_are"]) == ("other.small", 0, "exact")
    counted = json.loads(fsa("db", "show", "--exact", "--json", env=env).stdout)["tables"][0]
    assert (counted["rows"], counted["rows_are"]) == (20000, "exact")
    assert "id\tinteger" in fsa("db", "table", "other.small", "--rows", "3", env=env).stdout


def test_a_database_is_chosen_by_name(fsa, write_app, tmp_path, sqlite) -> None:
    write_app(
        tmp_path,
        main="""
        from fastapi import FastAPI
        from fastapi_sqlalchemy import Database, DBSessionMiddleware
        reports = Database(name="reports")
        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")
        app.add_middleware(DBSessionMiddleware, db_url="sqlite:///reports.db", db=reports)
        """,
    )

    for name in ("shop.db", "reports.db"):
        (tmp_path / name).touch()  # what only reads makes no file

    listed = [
        fsa(*words, "db", "query", "pragma database_list").stdout.splitlines()[1]
        for words in ([], ["-d", "reports"])
    ]

    assert [Path(line.split("\t")[-1]).name for line in listed] == ["shop.db", "reports.db"]
    assert fsa("db", "show", "-d", "nope").returncode == 2
    assert "no models" in fsa("db", "check").stderr


def test_the_metadata_may_be_named(fsa, write_app, tmp_path) -> None:
    write_app(
        tmp_path,
        {"pyproject.toml": '[tool.fsa]\nmetadata = "tables:metadata"\n'},
        main=APP,
        tables="""
        from sqlalchemy import Column, Integer, MetaData, Table
        metadata = MetaData()
        Table("plain", metadata, Column("id", Integer, primary_key=True))
        """,
    )

    assert fsa("db", "create").stdout == "plain\n"
    wrong = fsa("db", "check", env={"FSA_METADATA": "tables:nope"})
    assert (wrong.returncode, "tables:nope" in wrong.stderr) == (3, True)
    models = fsa("db", "check", env={"FSA_METADATA": "main:Base,tables:metadata"})
    assert models.returncode == 5


def test_an_unreachable_database_is_exit_4(fsa, project) -> None:
    env = {"FSA_DB_URL": "postgresql+psycopg://me:sesame@127.0.0.1:1/x"}
    for words in (["show"], ["query", "select 1"], ["check"]):
        done = fsa("db", *words, env=env)
        assert done.returncode == 4, (words, done.stderr)
        assert "sesame" not in done.stdout + done.stderr


def test_a_protected_environment_wants_the_databases_name(fsa, write_app, tmp_path) -> None:
    write_app(
        tmp_path, {"pyproject.toml": "[tool.fsa.env.production]\nprotected = true\n"}, main=APP
    )

    refused = fsa("--env", "production", "db", "create", "--yes")
    assert refused.returncode == 6
    assert not (tmp_path / "shop.db").stat().st_size
    assert fsa("--env", "production", "db", "create", "--confirm", "shop").returncode == 6
    done = fsa("--env", "production", "db", "create", "--confirm", "shop.db")
    assert (done.returncode, done.stdout) == (0, "countries\nusers\n"), done.stderr


def test_a_terminal_gets_a_table_of_a_few_hundred_rows(terminal, fsa, project) -> None:
    many = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 900)"
    (project / "shop.db").touch()
    child = terminal("fsa", "db", "query", f"{many} select i as number from n", columns=60)
    child.expect("number")
    child.expect("500")
    child.expect("the first 500 rows: --limit N shows more")
    assert "501" not in child.before


def test_tables_in_a_cycle_are_created_and_checked_without_a_word_of_sqlalchemys(
    fsa, write_app, tmp_path: Path
) -> None:
    write_app(
        tmp_path,
        main=APP.replace(
            "    app = FastAPI()",
            """    class Left(Base):
        __tablename__ = "lefts"
        id: Mapped[int] = mapped_column(primary_key=True)
        right: Mapped[int | None] = mapped_column(ForeignKey("rights.id"))

    class Right(Base):
        __tablename__ = "rights"
        id: Mapped[int] = mapped_column(primary_key=True)
        left: Mapped[int | None] = mapped_column(ForeignKey("lefts.id"))

    app = FastAPI()""",
        ),
    )

    for words, code in ((["check"], 5), (["create", "--yes"], 0), (["check"], 0)):
        done = fsa("db", *words)
        assert done.returncode == code, done.stderr
        assert "SAWarning" not in done.stderr
