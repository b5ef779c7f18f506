"""Who may see the console and press what, in an app that mounts it, over real HTTP."""

from __future__ import annotations

import html
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
from fastapi import FastAPI
from starlette.testclient import TestClient

from fsa_cli.console import ACTIONS, pages, router, routes
from support.backends import Backend
from support.ledgers import create_tables
from support.shops import Shop

MAIN = """
    from fastapi import Request
    from fsa_cli import console

    ROLES = {
        "look": "view",
        "operate": ("operate", "ann <b>"),
        "pauses": ({"pause", "resume"}, "bob"),
        "wrong": "everything",
        "false": False,
        "text": console.Access("run"),
        "unknown": {"fly"},
        "pair": ("operate", 5),
        "long": ("operate", "ann\\0" + "n" * 1_000_000),
    }

    async def who(request: Request):
        if request.headers.get("x-role") == "raises":
            raise KeyError("no such role")
        return ROLES.get(request.headers.get("x-role"))

    app.include_router(console.router(access=who), prefix="/ops")
    app.include_router(console.router(), prefix="/local")

    @task(schedule="0 3 * * *")
    def count(n: int, *, name: str = "", flag: bool = False) -> int:
        return n

    @task
    def login(user: str, password: str = "") -> None: ...
"""
PAGES = ["", "runs", "run?id=1", "tasks", "task?name=count", "coming", "queues", "nodes"]
PAGES += ["database", "audit", "static/console.css"]


def form(action: str, **fields: object) -> dict[str, object]:
    return {"action": action, "key": uuid.uuid4().hex, **fields}


def test_each_page_has_its_path() -> None:
    """The paths are known without what makes pages, which an app loads for its first."""
    assert set(routes._PAGES) == set(pages.PAGES)


def test_the_forbidden_are_forbidden_and_what_is_asked_twice_is_done_once(
    small_shop: Shop, serve_process, tmp_path
) -> None:
    small_shop.write(MAIN)
    with serve_process("main:app", cwd=tmp_path) as served:
        with httpx.Client(base_url=served.base_url, timeout=30) as client:
            check_looking(client)
            check_acting(client, small_shop, served.base_url)
            check_this_machine_alone(client)
            check_hostile_rows(client, small_shop)


def test_a_protected_environment_asks_for_the_name_and_offers_nothing_prohibited(
    small_shop: Shop, serve_process, tmp_path
) -> None:
    small_shop.write(MAIN)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "shop"\n'
        '[tool.fsa.env.production]\nprotected = true\nprohibited = ["scheduler pause"]\n'
    )
    with serve_process("main:app", cwd=tmp_path, env={"FSA_ENV": "production"}) as served:
        ours = {"origin": served.base_url, "x-role": "operate"}
        with httpx.Client(base_url=served.base_url, timeout=30, headers=ours) as client:
            run = form("run", task="count", **{"arg.n": "7"})
            assert client.post("/ops/act", data=run).status_code == 303
            page = client.get(f"/ops/run?id={run['key']}").text
            assert ("Cancel the run" in page, 'name="confirm"' in page) == (True, True)
            assert "production, protected" in page
            cancel = form("cancel", run=run["key"])
            refused = client.post("/ops/act", data={**cancel, "confirm": "other"})
            assert (refused.status_code, "type the database" in refused.text) == (400, True)
            assert small_shop.runs() == [("count", "queued")]
            name = re.search(r"name, <b>([^<]+)</b>", page)
            assert name
            agreed = client.post("/ops/act", data={**cancel, "confirm": name[1]})
            assert agreed.status_code == 303
            assert small_shop.runs() == [("count", "cancelled")]

            assert ">Pause</button>" not in client.get("/ops/task?name=count").text
            assert client.post("/ops/act", data=form("pause", task="count")).status_code == 403
            assert len(small_shop.ledger("SELECT id FROM fsa_audit")) == 2


def check_looking(client: httpx.Client) -> None:
    for page in PAGES:
        assert client.get(f"/ops/{page}").status_code == 403
        assert client.get(f"/ops/{page}", headers={"x-role": "none"}).status_code == 403
    for role in ("wrong", "false", "text", "unknown", "pair", "raises"):
        # A connection of its own: the server closes it after an error.
        answer = httpx.get(f"{client.base_url}/ops/", headers={"x-role": role}, timeout=30)
        assert answer.status_code == 500, role  # nobody is let in by a mistake
    looking = {"x-role": "look"}
    empty = client.get("/ops/", headers=looking)
    assert (empty.status_code, "no ledger of runs yet" in empty.text) == (200, True)
    policy = empty.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert empty.headers["x-frame-options"] == "DENY"
    assert "set-cookie" not in empty.headers
    assert client.get("/ops/static/../routes.py", headers=looking).status_code == 404
    assert client.get("/ops", headers=looking).status_code in (307, 404)


def check_acting(client: httpx.Client, shop: Shop, base_url: str) -> None:
    ours = {"origin": base_url, "sec-fetch-site": "same-origin", "x-role": "operate"}
    run = form("run", task="count", **{"arg.n": "7", "arg.name": "@/etc/passwd", "arg.flag": "yes"})

    def sent(data: dict[str, object], **headers: str | None) -> httpx.Response:
        merged = {**ours, **headers}
        given = {k: v for k, v in merged.items() if v is not None}
        return client.post("/ops/act", data=data, headers=given)

    assert sent(run, origin=None).status_code == 403
    assert sent(run, origin="null").status_code == 403
    assert sent(run, origin="https://evil.example").status_code == 403
    assert sent(run, origin=f"{base_url}.evil.example").status_code == 403
    assert sent(run, **{"sec-fetch-site": "cross-site"}).status_code == 403
    assert sent(run, **{"sec-fetch-site": "same-site"}).status_code == 403
    for action in ACTIONS:
        for role in (None, "look", "none"):
            fields = form(action, task="count", run="1", **{"arg.n": "1"})
            assert sent(fields, **{"x-role": role}).status_code == 403
    assert sent(form("run", task="count"), **{"x-role": "pauses"}).status_code == 403
    assert sent({**run, "pad": "x" * 300_000}).status_code == 413
    assert sent({**run, "key": "short"}).status_code == 400
    assert client.post("/ops/act", json=run, headers=ours).status_code == 415

    with ThreadPoolExecutor(4) as clicks:
        answers = list(clicks.map(lambda _: sent(run), range(4)))
    assert {each.status_code for each in answers} == {303}
    (location,) = {each.headers["location"] for each in answers}
    assert location == f"run?id={run['key']}"
    rows = shop.ledger("SELECT id, task, arguments, requested_by, status FROM fsa_run")
    assert [(r[0], r[1], json.loads(r[2]), r[3], r[4]) for r in rows] == [
        (run["key"], "count", {"n": 7, "name": "@/etc/passwd", "flag": True}, "ann <b>", "queued")
    ]
    assert sent({**run, "action": "pause"}).status_code == 400  # the key of another request

    wrong = sent(form("run", task="count", **{"arg.n": "<i>many</i>"}))
    assert wrong.status_code == 400
    assert "&lt;i&gt;many&lt;/i&gt;" in wrong.text
    assert sent(form("run", task="os:system")).status_code == 400
    secret = sent(form("run", task="login", **{"arg.user": "a", "arg.password": "hunter2"}))
    assert (secret.status_code, "hunter2" in secret.text) == (400, False)

    for fields in (
        form("cancel", run="x" * 100_000),
        form("retry", run="%\0"),
        form("pause", task="x" * 100_000),
    ):
        assert (sent(fields).status_code, fields["action"]) == (400, fields["action"])
    again = form("pause", task="count")
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        answer = client.request(
            method, "/ops/act", headers={**ours, "x-http-method-override": "POST"}
        )
        assert answer.status_code in (404, 405)
    assert (
        client.get("/ops/act", params={**again, "_method": "POST"}, headers=ours).status_code == 404
    )
    assert shop.ledger("SELECT paused_ms FROM fsa_task WHERE paused_ms IS NOT NULL") == []

    paused = sent(form("pause", task="count"), **{"x-role": "pauses"})
    assert paused.headers["location"] == "task?name=count"
    assert shop.ledger("SELECT paused_by FROM fsa_task WHERE name = 'count'") == [("bob",)]
    assert sent(form("resume", task="count"), **{"x-role": "long"}).status_code == 303
    assert shop.ledger("SELECT length(person) FROM fsa_audit WHERE action = 'resume'") == [(200,)]
    assert sent(form("retry", run=run["key"])).status_code == 400  # it has not ended
    everything = form("cancel", all="1", status="queued", task="count")
    assert sent(everything).status_code == 303
    assert shop.runs() == [("count", "cancelled")]
    again = form("retry", run=run["key"])
    assert [sent(again).status_code for _ in range(2)] == [303, 303]
    assert sorted(shop.runs()) == [("count", "cancelled"), ("count", "queued")]

    kept = shop.ledger("SELECT person, action, target, outcome FROM fsa_audit ORDER BY at_ms")
    assert kept[:3] == [
        ("ann <b>", "run", "count", f"enqueued {run['key']}"),
        ("bob", "pause", "count", "paused"),
        (f"ann{'n' * 197}", "resume", "count", "resumed"),
    ]
    assert [row[3] for row in kept[4:]] == ["1 of 1 runs", f"enqueued {again['key']}"]
    page = client.get("/ops/audit", headers=ours)
    assert "ann &lt;b&gt;" in page.text
    assert (
        '<input type="hidden" name="action"'
        not in client.get(f"/ops/run?id={run['key']}", headers={"x-role": "look"}).text
    )

    first = client.get("/ops/runs", headers=ours)
    tag = {"if-none-match": first.headers["etag"]}
    assert client.get("/ops/runs", headers={**ours, **tag}).status_code == 304
    assert client.get("/ops/runs", headers={"x-role": "look", **tag}).status_code == 200
    assert client.get("/ops/run?id=zz", headers=ours).status_code == 404
    for page_name in PAGES[:2] + PAGES[3:]:
        assert client.get(f"/ops/{page_name}", headers=ours).status_code == 200, page_name


def check_hostile_rows(client: httpx.Client, shop: Shop) -> None:
    """What others may have written into the ledger ends no page."""
    huge, name = (
        9_000_000_000_000_000_000,
        "</title><script>alert(1)</script> \x1b[31m\u202e'\"&%2F/?#",
    )
    (file,) = shop.directory.glob("*-ledger.db")
    with closing(sqlite3.connect(file)) as connection, connection:
        (run,) = connection.execute("SELECT id FROM fsa_run LIMIT 1").fetchone()
        columns = [row[1] for row in connection.execute("PRAGMA table_info(fsa_run)")]
        for number, (changes, at) in enumerate(
            (
                ({"scheduled_ms": -huge, "started_ms": -huge, "finished_ms": huge}, "failed"),
                ({"scheduled_ms": huge, "not_before_ms": huge, "queued_ms": huge}, "queued"),
                ({"error": b"\xff\x00<b>", "result": b"\xfe", "traceback": b"\xff"}, "failed"),
                ({"arguments": "[1", "error_type": b"\xff", "attempt": "many"}, "running"),
            )
        ):
            values = {"id": f"hostile {number} <b>'\"", "slot": str(number), "task": name}
            values |= {"status": at, "lock_key": None, **changes}
            chosen = ", ".join(f":{c}" if c in values else c for c in columns)
            connection.execute(
                f"INSERT INTO fsa_run SELECT {chosen} FROM fsa_run WHERE id = :run",
                {**values, "run": run},
            )
        for options in ('{"schedule": {}, "timezone": 5, "tags": [{}]}', "no json", b"\xff"):
            connection.execute(
                "INSERT INTO fsa_task (namespace, name, options, watermark_ms, last_success_ms,"
                " consecutive_failures) SELECT namespace, ?, ?, 0, ?, ? FROM fsa_run LIMIT 1",
                (f"{name}{options!r}", options, huge, huge),
            )
    looking = {"x-role": "look"}
    found = client.get("/ops/runs", headers=looking).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\x1b[31m\\u202e" in found, re.sub(
        r"\s+", " ", found
    )[-900:]
    for address in ("", "runs", "runs?status=failed&status=queued", "tasks", "coming", "queues"):
        page = client.get(f"/ops/{address}", headers=looking)
        assert (page.status_code, "<script>" in page.text) == (200, False), address
        for link in sorted(set(re.findall(r'href="((?:run|task)\?[^"]+)"', page.text))):
            inner = client.get(f"/ops/{html.unescape(link)}", headers=looking)
            assert (inner.status_code, "<script>" in inner.text) == (200, False), link
    after = "runs?after=9223372036854775807.x"
    assert client.get(f"/ops/{after}", headers=looking).status_code == 200
    assert client.get(f"/ops/{after.replace('9', '99')}", headers=looking).status_code == 200


def check_this_machine_alone(client: httpx.Client) -> None:
    assert client.get("/local/").status_code == 200
    for name, value in {
        "forwarded": "for=127.0.0.1",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "https",
        "x-real-ip": "127.0.0.1",
        "x-client-ip": "127.0.0.1",
        "x-original-forwarded-for": "127.0.0.1",
        "x-amzn-trace-id": "Root=1",
        "fastly-client-ip": "127.0.0.1",
        "via": "1.1 proxy",
        "host": "evil.example",
    }.items():
        assert client.get("/local/", headers={name: value}).status_code == 403, name


def test_mounting_the_console_loads_no_template_and_no_database() -> None:
    program = (
        "import sys, fastapi\n"
        "from fsa_cli import console\n"
        "fastapi.FastAPI().include_router(console.router(), prefix='/ops')\n"
        "print(sorted({'jinja2', 'sqlalchemy', 'typer', 'rich'} & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


MOUNTED = """
import sys, threading
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fastapi_sqlalchemy import DBSessionMiddleware
from fsa_cli import console
app = FastAPI()
app.add_middleware(DBSessionMiddleware, db_url=sys.argv[1])
app.include_router(console.router(access=lambda: 'view'))
"""


def test_the_first_page_after_an_apps_start_has_nothing_to_load(postgresql: Backend) -> None:
    create_tables(postgresql.url)
    postgresql.execute(
        "INSERT INTO fsa_task (namespace, name, options, watermark_ms) "
        "VALUES ('look', 'tea', '{}', 0)"
    )
    program = (
        f"{MOUNTED}"
        "with TestClient(app) as client:\n"
        "    for each in threading.enumerate():\n"
        "        if each.name == 'fsa console':\n"
        "            each.join()\n"
        "    from fsa_cli.console.source import source_here\n"
        "    print(source_here().ledger._single.pool.checkedin())\n"
        "    before = set(sys.modules)\n"
        "    print('Nothing ran in the last 1h' in client.get('/').text)\n"
        "    print([each for each in set(sys.modules) - before if not each.startswith('anyio')])\n"
        "with TestClient(app) as client:\n"
        "    pass\n"
        "print([each.name for each in threading.enumerate() if 'AnyIO' not in each.name])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, postgresql.url],
        env={**os.environ, "FSA_NAMESPACE": "look"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "0\nTrue\n[]\n['MainThread']\n"


def test_a_database_that_is_away_is_said_so_and_asked_for_again() -> None:
    """The web process has loaded nothing of `fsa`'s."""
    program = (
        f"{MOUNTED}"
        "answer = TestClient(app).get('/')\n"
        "print(answer.status_code, answer.headers['Refresh'], answer.text)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{free.getsockname()[1]}/shop"
    done = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("503 5 "), done.stdout
    assert "<h1>the ledger cannot be reached</h1>" in done.stdout
    assert "is the server running" in done.stdout
    assert "00:00:00" not in done.stdout


def test_a_nul_in_an_address_or_a_form_is_the_askers_mistake() -> None:
    app = FastAPI()
    app.include_router(router(access=lambda: "operate"))
    with TestClient(app) as client:
        form = {"action": "pause", "key": uuid.uuid4().hex, "task": "a\0b"}
        ours = {"sec-fetch-site": "same-origin", "origin": "http://testserver"}
        asked = client.post("/act", data=form, headers=ours)
        assert (client.get("/runs?task=a%00b").status_code, asked.status_code) == (400, 400)
