"""Every command that shows something: as JSON, in a pipe, on a narrow and on a dumb terminal."""

import json
import os
import re
from pathlib import Path

import pytest

from support.processes import (
    FSA,
    Completed,
    Forked,
    OpenTerminal,
    environment,
    run,
    write_files,
)

pytestmark = pytest.mark.slow

LONG = "a summary that is much longer than twenty columns and has a größe in it"
FILES = {
    "pyproject.toml": '[tool.fsa.health]\ndisk = "tasks:disk"\n',
    "main.py": """
        from fastapi import FastAPI
        from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
        from fastapi_sqlalchemy import DBSessionMiddleware

        class Base(DeclarativeBase):
            pass

        class Order(Base):
            __tablename__ = "orders"
            id: Mapped[int] = mapped_column(primary_key=True)
            item: Mapped[str]

        app = FastAPI()
        app.add_middleware(DBSessionMiddleware, db_url="sqlite:///shop.db")

        @app.get("/orders")
        def orders() -> list[str]: ...
    """,
    "tasks.py": f"""
        from fsa_cli import task

        def disk():
            return "12 GB free"

        @task(schedule="0 3 * * *")
        def ship(item: str = "tea", *, limit: int = 10) -> dict:
            '''{LONG}.'''
            return {{"item": item, "limit": limit}}
    """,
}
READING = [
    ["tasks"],
    ["tasks", "ship"],
    ["run-task", "ship"],
    ["scheduler", "list"],
    ["scheduler", "next"],
    ["health", "ready"],
    ["routes"],
    ["config"],
    ["doctor"],
    ["db", "show"],
    ["db", "table", "orders"],
    ["db", "query", "select id, item from orders"],
    ["db", "check"],
]
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose database has its one table, with a row."""
    directory = write_files(tmp_path_factory.mktemp("shop"), FILES)
    code = "Base.metadata.create_all(session.connection())\nsession.add(Order(item='größe'))\n"
    done = run(FSA, "shell", "-c", f"from main import Base\n{code}session.commit()", cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(params=READING, ids=" ".join)
def words(request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.param
    return found


def test_json_is_one_document_in_an_ascii_locale_with_stderr_closed(
    shop: Path, words: list[str]
) -> None:
    # The shell closes descriptor 2 before fsa begins.
    done: Completed = run(
        "/bin/sh", "-c", '"$@" 2>&-', "sh", FSA, *words, "--json", cwd=shop, env=ASCII
    )

    assert done.returncode == 0, done.stdout
    assert done.stdout.isascii()
    assert json.loads(done.stdout) is not None
    if words in (["tasks", "ship"], READING[-2]):
        assert "größe" in str(json.loads(done.stdout))


def test_a_reader_that_has_gone_ends_it_without_a_word(
    shop: Path, words: list[str], tmp_path: Path
) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        with Path(os.devnull).open() as nothing, (tmp_path / "err").open("w") as err:
            streams = (nothing.fileno(), write, err.fileno())
            done = Forked((FSA, *words, "-q"), cwd=shop, env=environment(), streams=streams)
            done.wait()
    finally:
        os.close(write)

    silent = words == ["db", "check"]  # with -q there is nothing to write
    assert done.returncode == (0 if silent else 141)
    said = (tmp_path / "err").read_text()
    if words == ["scheduler", "list"]:
        assert said.startswith("warning: no scheduler is alive")
    else:
        assert said == ""


def test_a_dumb_terminal_of_twenty_columns_cuts_the_last_column_alone_and_has_no_colors(
    shop: Path, words: list[str], terminal: OpenTerminal
) -> None:
    piped = run(FSA, *words, "-q", cwd=shop)
    screen = terminal(FSA, *words, "-q", cwd=shop, env={"TERM": "dumb"}, columns=20)
    shown = screen.read()
    screen.close()

    assert screen.exitstatus == piped.returncode == 0, shown
    assert "\x1b" not in shown
    assert "…" not in shown
    if words == ["tasks"]:
        whole = re.sub(r"\s", "", shown)
        kept = "\t".join(
            cell for line in piped.stdout.splitlines() for cell in line.split("\t")[:-1]
        )
        assert all(letters in whole for letters in re.findall(r"\w{4}", kept)), shown


def test_a_terminal_has_colors_unless_no_color_is_set(shop: Path, terminal: OpenTerminal) -> None:
    shown = {}
    for value in (None, "1"):
        screen = terminal(FSA, "health", cwd=shop, env={"NO_COLOR": value})
        shown[value] = screen.read()
        screen.close()

    styled = re.compile(r"\x1b\[[0-9;]*[34][0-9]m")
    assert styled.search(shown[None]), shown[None]
    assert not styled.search(shown["1"]), shown["1"]
