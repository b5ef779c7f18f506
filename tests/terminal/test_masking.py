"""No password in any output: of the error printer whatever the password, of every command."""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from fsa_cli.cli.command_tree import COMMANDS
from fsa_cli.exceptions import FsaError
from fsa_cli.runner.outcome import encode_result
from fsa_cli.terminal.json_values import dumps
from fsa_cli.terminal.masking import mask, mask_head, mask_tail
from fsa_cli.terminal.output import Output
from support.backends import Backend
from support.processes import Run, write_files


def spellings(password: str) -> set[str]:
    """How a password stands in texts: as it is where that can be told, else encoded or quoted."""
    return {quote(password, safe=""), quote_plus(password), password}


def texts(password: str) -> list[str]:
    """What drivers, SQLAlchemy and people write."""
    encoded, in_sql = quote(password, safe=""), password.replace("'", "''")
    return [
        f"cannot connect to postgresql+psycopg://me:{encoded}@db.example:5432/shop?sslmode=require",
        f"Could not parse mysql://:{encoded}@db/shop",
        f"postgresql://db/shop?user=me&password={encoded}&sslmode=require",
        f"sqlite+pysqlcipher:///shop.db?PASSWORD={encoded}",
        f"postgresql://me@db/shop?sslpassword={encoded}",
        f"mssql+pyodbc://db/shop?authentication_token={encoded}",
        f"connect(**{ {'host': 'db', 'password': password}!r})",
        f"connect(host='db', password={password!r})",
        json.dumps({"host": "db", "password": password}),
        json.dumps({"url": f"postgresql://me:{encoded}@db/shop"}),
        f"the variable DB_PASSWORD={encoded} is set",
        repr(make_url("postgresql://me@db/shop").set(password=password)),
        f"[SQL: ALTER ROLE me WITH ENCRYPTED PASSWORD '{in_sql}']",
        f"[SQL: CREATE USER me IDENTIFIED WITH mysql_native_password BY '{in_sql}' REQUIRE SSL]",
        f"SET PASSWORD FOR me = PASSWORD('{in_sql}')",
        f"SET PASSWORD FOR 'me'@'%' = '{in_sql}'",
        f"Command '{['dump', '--db-password', password]!r}' returned non-zero exit status 1.",
        f"Command 'dump --db-password {encoded} shop' returned non-zero exit status 1.",
        f"dump --token  '{in_sql}' shop",
        f"< Authorization: Bearer {encoded}",
        f"headers={ {'authorization': f'Basic {encoded}'}!r}",
        "1 validation error for Settings\ndb_password\n  Extra inputs are not permitted "
        f"[type=extra_forbidden, input_value={password!r}, input_type=str]\n    For further",
    ]


# Long enough not to be in the text around it by chance, and none of its words: Hypothesis tries
# the words of our own sources too, `password` and `warning:` among them.
PASSWORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=8, max_size=30
).filter(lambda password: not re.fullmatch("[A-Za-z_:=+?]+", password))


@given(PASSWORDS)
def test_no_password_is_left_in_a_text(password: str) -> None:
    for text in texts(password):
        shown = mask(text)
        for spelling in {*spellings(password), json.dumps(password)[1:-1], repr(password)[1:-1]}:
            assert spelling not in shown, text


@given(PASSWORDS, st.booleans(), st.booleans())
def test_the_error_printer_shows_no_password(password: str, as_json: bool, whole: bool) -> None:
    for text in texts(password):
        error = FsaError(f"it failed: {text}", details=[text, f"  {text}"], hint=f"not {text}")
        cause = RuntimeError(text)
        error.__cause__ = cause
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            output = Output(json=as_json, traceback=whole)
            output.error(error)
            output.say(text)
            output.warn(text)
            output.line(text)
            output.table([{"text": text}], {"text": "text"})
            output.record({"text": text})
            output.document({"text": [text]})
        for spelling in spellings(password):
            assert spelling not in told.getvalue()


@given(PASSWORDS, st.integers(-40, 200))
def test_no_password_is_left_where_a_text_is_cut(password: str, cut: int) -> None:
    for text in texts(password):
        for length in (len(text) + cut, cut):
            shown = mask_head(text, max(length, 0)) + mask_tail(text, max(length, 0))
            for spelling in (quote(password, safe=""), quote_plus(password)):
                for part in (spelling[:8], spelling[-8:]):
                    assert part not in shown or part in mask(text), text


_LONG = "x" * 20 + " postgresql://me:hunter2hunter2hunter2hunter2@db.example/shop"
CUT = f"""
    from fastapi import FastAPI
    from sqlalchemy import text
    from fastapi_sqlalchemy import DBSessionMiddleware, db
    from fsa_cli import task

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")

    @task
    def give(number: int = 1): return {_LONG!r}
"""


def test_a_line_is_cut_after_its_passwords_are_masked(
    fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    """A URL whose "@" was cut off was no URL any more, and its password was shown."""
    write_app(tmp_path, main=CUT)
    (tmp_path / "echo.py").write_text(
        f"session.execute(text('select :a'), {{'a': {_LONG!r} * 20}})"
    )
    assert fsa("scheduler", "trigger", "give").returncode == 0
    said = {
        "in the log": fsa("scheduler", "tick"),
        "of an argument": fsa("run-task", "give", _LONG),
        "of a parameter": fsa("shell", "--echo", "echo.py"),
    }

    for where, done in said.items():
        told = done.stdout + done.stderr
        assert "postgresql://me:***" in told, (where, told)
        assert "hunter" not in told, (where, told)


HOSTILE = {
    "hexadecimal digits": "0123456789abcdef",
    "names": "password",
    "pairs": "token=x ",
    "open quotes": "token='",
    "escaped quotes": "token='\\'",
    "addresses": "a://a:",
    "web addresses": "https://a:b/",
    "schemes": "://",
    "words": "a-",
    "spaces": " ",
    "an @ at each": "a://a:b@",
    "arguments": "--a-",
    "quoted in SQL": "password '\\''",
    "identified": "identified by ",
    "headers": "authorization: ",
    "options of a command": "--password ",
    "what was given": ", input_value=",
    "what fields were given": "token\n, input_value=",
}


def test_the_name_of_a_revision_is_shown() -> None:
    said = "Can't locate revision identified by '1a2b3c'"

    assert mask(said) == said


def shortest_s(function: Callable[..., object], *arguments: object) -> float:
    """The least CPU that some calls take: no test depends on how fast the machine is."""
    took_s = []
    for _ in range(5):
        start_s = time.thread_time()
        function(*arguments)
        took_s.append(time.thread_time() - start_s)
    return max(min(took_s), 0.0005)


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_a_text_of_20_mb_is_told_as_fast_as_one_of_200_kb(piece: str) -> None:
    """The scheduler waits for as long. That 20 MB were read would be seen."""
    short, long = (piece * (length // len(piece)) + "@" for length in (200_000, 20_000_000))
    for shorten in (mask_head, mask_tail, encode_result, lambda t: encode_result([t, {t: t}])):
        assert shortest_s(shorten, long) < 4 * shortest_s(shorten, short)
    assert shortest_s(mask, long[:1_000_000]) < 40 * shortest_s(mask, long[:100_000])


def test_a_result_of_a_million_values_is_cut_before_it_is_looked_at() -> None:
    few, many = ({"rows": [{"id": n} for n in range(count)]} for count in (20_000, 1_000_000))
    assert shortest_s(encode_result, many) < 4 * shortest_s(encode_result, few)
    told = encode_result(many)
    assert told is not None
    assert json.loads(told).startswith('{"rows": [{"id": 0}')
    assert json.loads(told).endswith(" ... (cut)")


SECRET = "hunter2/sec%ret"

MAIN = """
    import os
    from fastapi import FastAPI
    from sqlalchemy import text
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
    from fastapi_sqlalchemy import DBSessionMiddleware, db
    from fsa_cli import task

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url="sqlite://")

    class Base(DeclarativeBase): ...

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)

    @task(schedule="@daily")
    def fail(session: Session):
        session.execute(text("SELECT 1"))
        raise RuntimeError(f"cannot use {db.url.render_as_string(hide_password=False)}")

    @app.get("/")
    def index(): ...
"""


@pytest.mark.parametrize(
    "text",
    [
        "api_key=b'hunter2'",
        "{'password': b\"hunter2\", 'n': 1}",
        "token=UUID('hunter2')",
        "'password'=>'hunter2', 'n'=>1",
        'password="hun""ter2"',
        "passwords=['hunter2', 'ter2']",
        "SMTP_PASS=hunter2",
        '{"db_pass": "hunter2"}',
    ],
)
def test_secrets_as_python_and_settings_write_them_are_masked(text: str) -> None:
    assert "ter2" not in mask(text)


def test_a_pass_that_is_no_password_stays() -> None:
    text = "compass=3 bypass=4 first_pass=5 passes=6 user_passed=7"
    assert mask(text) == text


def test_an_argument_behind_its_option_is_masked_in_json_too() -> None:
    words = ["--password", "hunter2", "--n", "--token", "--other", "--api-key=hunter2"]
    shown = ["--password", "***", "--n", "--token", "--other", "--api-key=***"]
    assert json.loads(dumps(words)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "failed to resolve host 'hunter2@db': [Errno -2] Name or service not known",
        'could not translate host name "hunter2@db" to address: Name or service not known',
        "Can't connect to MySQL server on 'hun@ter2@db' ([Errno -2]",
        "Unknown server host 'hunter2@db' (-2)",
    ],
)
def test_the_end_of_a_password_that_a_driver_takes_for_a_host_is_masked(text: str) -> None:
    assert "ter2" not in mask(text)
    assert "***@db" in mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "--token is an option",
        "the value of --password, or --token to ask for it",
        "no such option: --secret",
        "give --password.",
        "--api-key\nhunter2",
    ],
)
def test_a_sentence_about_an_option_stays(text: str) -> None:
    assert mask(text) == text


def test_mysqls_word_on_whether_a_password_was_given_is_not_one() -> None:
    said = "Access denied for user 'root'@'127.0.0.1' (using password: YES)"
    assert mask(said) == said
    assert mask("password: YES") == "password: ***"


#: Each command, in words that end by themselves.
LINES = [
    "run-task fail",
    "run-task fail --dry-run",
    "run-task fail --args-json {url}",
    "run-task {url}",
    "tasks fail",
    "scheduler init",
    "scheduler init --sql",
    "scheduler list",
    "scheduler next",
    "scheduler test fail --at 2026-11-22T00:00Z",
    "scheduler status",
    "scheduler trigger fail",
    "scheduler trigger {url}",
    "scheduler pause fail",
    "scheduler resume --all",
    "scheduler tick",
    "scheduler start --grace {url}",
    "worker start --grace {url}",
    "worker start --executor celery",
    "runs",
    "runs fail",
    "runs show {url}",
    "shell -c session.execute(text('SELECT_1'))",
    "status",
    "top",
    "console --port {url}",
    "docs --search {url}",
    "dev --port {url}",
    "init --systemd",
    "docs {url}",
    "health",
    "health live",
    "config",
    "doctor",
    "routes",
    "db show",
    "db query SELECT_1",
    "db check",
    "db current",
    "--app {url} health",
]


def test_every_command_is_among_them() -> None:
    assert set(COMMANDS) <= {line.split()[0] for line in LINES}


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("secrets"), main=MAIN)


@pytest.mark.parametrize("line", LINES)
def test_no_command_shows_the_databases_password(
    line: str, laid: Path, postgresql: Backend, fsa: Run
) -> None:
    """With a database that answers, and with one that does not."""
    url = make_url(postgresql.url).set(password=SECRET)
    working = url.render_as_string(hide_password=False)
    failing = (
        f"postgresql+psycopg://me:{quote(SECRET, safe='')}@127.0.0.1:1/shop"
        f"?sslpassword={quote_plus(SECRET)}"
    )
    for used, flags in ((working, ["-v"]), (failing, ["--json", "--traceback", "-v"])):
        words = [word.replace("_", " ").format(url=used) for word in line.split()]

        done = fsa(*flags, *words, cwd=laid, env={"FSA_DB_URL": used})

        assert "hunter2" not in done.stdout + done.stderr
        assert done.stdout + done.stderr or line == "health live"


def test_a_password_in_a_tasks_error_is_not_in_the_ledger(
    laid: Path, postgresql: Backend, fsa: Run
) -> None:
    """Whoever ran it, and whoever looks at the run afterwards."""
    url = make_url(postgresql.url).set(password=SECRET).render_as_string(hide_password=False)

    def shown(*words: str) -> str:
        done = fsa(*words, cwd=laid, env={"FSA_DB_URL": url})
        assert "hunter2" not in done.stdout + done.stderr, words
        return done.stdout

    shown("scheduler", "init")
    shown("run-task", "fail")
    shown("scheduler", "trigger", "fail")
    shown("scheduler", "tick")
    shown("runs", "retry", json.loads(shown("runs", "--json"))[0]["id"])
    shown("scheduler", "tick", "--json")

    runs = json.loads(shown("runs", "--status", "failed", "--json"))
    assert len(runs) == 3
    for run in runs:
        assert "cannot use postgresql" in shown("runs", "show", run["id"])
        shown("runs", "show", run["id"], "--json")
        shown("runs", "cancel", run["id"])
    assert shown("runs").count("cannot use postgresql") == 3
    assert "fail" in shown("scheduler", "status")
    shown("scheduler", "status", "--json")
    kept = postgresql.rows("SELECT error, traceback, result, arguments FROM fsa_run")
    assert "hunter2" not in repr(kept)


def test_a_password_in_the_env_file_is_not_shown(
    laid: Path, fsa: Run, write_app: Callable[..., Path], tmp_path: Path
) -> None:
    url = f"mysql+pymysql://me:{quote(SECRET, safe='')}@127.0.0.1:1/shop"
    write_app(tmp_path, {"main.py": (laid / "main.py").read_text(), ".env": f"FSA_DB_URL={url}\n"})

    for words in (["config", "--json"], ["health"], ["run-task", "fail", "--traceback"]):
        done = fsa(*words)

        assert "127.0.0.1" in done.stdout + done.stderr
        assert "hunter2" not in done.stdout + done.stderr
