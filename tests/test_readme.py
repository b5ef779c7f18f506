"""README's examples are run as they are written there, its story line by line."""

import re
import shutil
import socket
import sys
from pathlib import Path

import pytest

from fsa_cli.terminal import manual
from support.manual import README, ROOT, blocks, sh, text_of, write_files
from support.processes import run, run_sh

pytestmark = pytest.mark.slow

RUN_BY_CI = {"Running the tests"}  # it is what runs this file
RUN_HERE = {"A minute", "Quick start", "You have an app"}

# What a reader waits for between two lines of the story.
SERVED = "until curl -s localhost:8000/docs >/dev/null; do sleep 0.1; done"
STARTED = "until [ $(grep -c Ctrl-C err) = {} ]; do sleep 0.1; done"
COUNTED = "before=$(grep -c succeeded err || true)"
WENT_ON = "until [ $(grep -c succeeded err) -gt $before ]; do sleep 0.1; done"


def test_it_is_read_at_one_sitting() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 250


def test_every_sh_block_is_run() -> None:
    assert {b.heading for b in blocks(README) if b.language == "sh"} == RUN_HERE | RUN_BY_CI


def test_every_link_leads_to_a_file_or_a_section() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        page = Path(target).stem in manual.ORDER
        assert page or target[1:] in anchors or (ROOT / target).exists(), target


def test_the_story_of_a_minute_is_true_line_by_line(tmp_path: Path) -> None:
    write_files([b for b in blocks(README) if b.heading == "A minute"], tmp_path)
    waits = iter([SERVED, STARTED.format(1), STARTED.format(2)])
    script = ["exec >out 2>err", "trap 'kill -9 $(jobs -p) 2>&-' EXIT"]
    for line in sh(README, "A minute").splitlines():
        if line == "fsa runs":
            script += [COUNTED, WENT_ON]
        script.append(line)
        script += [next(waits)] if line.endswith("&") else []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    run_sh("\n".join(script).replace("8000", port), tmp_path)
    shown, said = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    assert '"tea"' in shown
    assert "1\ntable\tinserted\tupdated\tdeleted\norders\t0\t1\t0\n" in shown
    assert "a dry run: all of it was rolled back" in said
    rest = shown.partition("what it said\n")[2].splitlines()
    runs = [line for line in rest if "\t" in line]
    assert any("main:app  sqlite shop.db" in line for line in rest)
    assert {run.split("\t")[2] for run in runs} <= {"succeeded", "running"}
    assert [run.split("\t")[5] for run in runs].count("1") == 1


@pytest.mark.parametrize("number", [0, 1])
def test_an_app_of_ones_own_is_driven(tmp_path: Path, number: int) -> None:
    write_files([b for b in blocks(README) if b.heading == "You have an app"], tmp_path)
    if number == 0:  # before the line is written
        web = tmp_path / "web.py"
        web.write_text(re.sub(r"db\.configure.*\n", "", web.read_text()))
    done = run_sh(sh(README, "You have an app", number), tmp_path)
    assert done.stdout.endswith("1\n"), done.stdout


def test_the_dependency_that_is_named_commits_before_the_response(tmp_path: Path) -> None:
    write_files([b for b in blocks(README) if b.heading == "You have an app"], tmp_path)
    (line,) = re.findall(r"`(app\.add_middleware\(DBSessionMiddleware[^`]*)`", text_of(README))
    program = (
        "from starlette.testclient import TestClient\n"
        "from fastapi_sqlalchemy import DBSessionMiddleware\n"
        f"from web import *\n{line}\n"
        "with engine.begin() as connection: connection.execute(text('create table t (x int)'))\n"
        "def get_db(): return db.session\n"
        "@app.post('/')\n"
        "def add(session: Session = Depends(get_db)) -> None:\n"
        "    session.execute(text('insert into t values (1)'))\n"
        "TestClient(app).post('/').raise_for_status()\n"
        "with engine.connect() as connection:\n"
        "    print(connection.scalar(text('select count(*) from t')))\n"
    )
    done = run(sys.executable, "-c", program, cwd=tmp_path)
    assert done.stdout == "1\n", done.stderr


def test_the_quick_start_prints_what_is_shown(tmp_path: Path) -> None:
    """What is installed here stands in for its first lines, which `.ci/run` runs in full."""
    examples = shutil.ignore_patterns("*.db*", "__pycache__")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=examples)
    setup = ("python3 -m venv", ". .venv", "pip install")
    lines = [line for line in sh(README, "Quick start").splitlines() if not line.startswith(setup)]
    (shown,) = [
        b.text for b in blocks(README) if b.heading == "Quick start" and b.language == "text"
    ]
    printed = run_sh("exec 2>&1\n" + "\n".join(lines), tmp_path).stdout
    duration = re.compile(r"(?<= in )[^,]+(?=, )")
    assert duration.sub("a moment", printed) == duration.sub("a moment", shown)
