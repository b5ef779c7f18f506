"""The routes for probes, behind a real server."""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from fastapi_sqlalchemy import Database, DBSessionMiddleware, db, health
from support.proxy import proxy_to
from support.waiting import DEADLINE_S, wait_until
from support.web import client_of


@pytest.fixture
def reports():
    """A second database of an app."""
    database = Database("reports")
    yield database
    database.dispose()


def app_of(url: str, reports: Database, **options: object) -> FastAPI:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=url, db=reports)
    app.include_router(health.router(reports, **options))  # type: ignore[arg-type]
    return app


def test_every_database_of_the_middleware_is_asked(serve, backend, reports) -> None:
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=backend.url, db=reports)
    app.include_router(health.router(), prefix="/internal")

    with client_of(serve, app) as client:
        alive, ready = client.get("/internal/livez"), client.get("/internal/readyz")
        head = client.head("/internal/readyz")
        documented = client.get("/openapi.json").json()["paths"]

    assert (alive.status_code, alive.json()) == (200, {"ok": True})
    assert ready.status_code == 200, ready.text
    (check,) = [c for c in ready.json()["checks"] if c["check"] == "database reports"]
    assert check["ok"] is True
    assert check["latency_ms"] > 0
    assert ready.headers["cache-control"] == "no-store"
    assert (head.status_code, head.content) == (200, b"")
    assert documented == {}


def test_a_database_that_is_down_is_503_without_its_address_and_logged_once(
    serve, postgresql, reports, caplog
) -> None:
    caplog.set_level(logging.INFO, "fastapi_sqlalchemy")
    with proxy_to(postgresql.url) as proxy:
        url = proxy.url(postgresql.url)
        with client_of(serve, app_of(url, reports, timeout_s=DEADLINE_S)) as client:
            assert client.get("/readyz").status_code == 200
            proxy.close()
            downs = [client.get("/readyz") for _ in range(3)]
            alive = client.get("/livez")

    assert [down.status_code for down in downs] == [503, 503, 503]
    assert downs[0].json() == {
        "ok": False,
        "checks": [
            {
                "check": "database reports",
                "ok": False,
                "latency_ms": None,
                "detail": "OperationalError",
            }
        ],
    }
    assert alive.status_code == 200
    assert [r.getMessage()[:28] for r in caplog.records] == ["not ready: database reports:"]


def test_a_database_that_does_not_answer_is_503_in_time_and_then_ready_again(
    serve, postgresql, reports, caplog
) -> None:
    caplog.set_level(logging.INFO, "fastapi_sqlalchemy")
    with proxy_to(postgresql.url) as proxy:
        app = app_of(proxy.url(postgresql.url), reports, timeout_s=0.5)
        with client_of(serve, app) as client:
            proxy.silent.set()
            down = client.get("/readyz")
            proxy.silent.clear()
            wait_until(lambda: client.get("/readyz").status_code == 200)

    assert down.status_code == 503
    assert down.json()["checks"][0]["detail"] == "no answer within 0.5 s"
    assert "ready again: database reports" in caplog.text


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(
    ("name", "driver"),
    [
        ("postgresql", "psycopg"),
        ("postgresql", "asyncpg"),
        ("mariadb", "aiomysql"),
        ("mariadb", "asyncmy"),
    ],
)
def test_a_silent_database_is_told_within_the_time_out(
    name: str, driver: str, pooled: bool, request, reports
) -> None:
    """A cancelled driver may wait for the server once more: psycopg for 10 s."""
    url = request.getfixturevalue(name).with_driver(driver)

    async def main(proxy) -> float:
        if pooled:
            await health.aping(reports, timeout_s=DEADLINE_S)
        proxy.silent.set()
        start_s = time.monotonic()
        with pytest.raises(TimeoutError):
            await health.aping(reports, timeout_s=0.5)
        took_s = time.monotonic() - start_s
        proxy.drop_all()  # for what is left behind
        return took_s

    with proxy_to(url) as proxy:
        reports.configure(async_db_url=proxy.url(url))
        assert asyncio.run(main(proxy)) < 4


def test_many_probes_at_a_time_share_one_check(serve, backend, reports) -> None:
    running, calls, release = threading.Event(), [], threading.Event()

    def own() -> str:
        calls.append(1)
        running.set()
        assert release.wait(DEADLINE_S)
        return "done"

    app = app_of(backend.url, reports, checks={"own": own}, timeout_s=DEADLINE_S)
    with client_of(serve, app) as client, ThreadPoolExecutor(8) as threads:
        first = threads.submit(client.get, "/readyz")
        assert running.wait(DEADLINE_S)
        others = [threads.submit(client.get, "/readyz") for _ in range(7)]
        wait_until(lambda: backend.connections() >= 1)
        assert client.get("/livez").status_code == 200
        release.set()
        answers = [each.result(DEADLINE_S) for each in (first, *others)]

    assert all(answer.status_code == 200 for answer in answers)
    assert len(calls) < 8


def test_a_mounted_app_asks_the_databases_around_it_too(serve, sqlite, reports) -> None:
    """Also where both are asked at once: each has a database of its own by the name `default`."""
    probes = health.router()
    mounted = FastAPI()
    mounted.add_middleware(DBSessionMiddleware, db_url="sqlite:////nowhere/there.db")
    mounted.include_router(probes)
    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=sqlite.url)
    app.add_middleware(DBSessionMiddleware, db_url=sqlite.url, db=reports)
    app.include_router(probes)
    app.mount("/mounted", mounted)

    with client_of(serve, app) as client, ThreadPoolExecutor(8) as threads:
        paths = ["/readyz", "/mounted/readyz"] * 8
        answers = list(threads.map(client.get, paths))

    for path, answer in zip(paths, answers, strict=True):
        found = {check["check"]: check["ok"] for check in answer.json()["checks"]}
        ours = path == "/readyz"
        assert found == {"database default": ours, "database reports": True}, path


def test_own_checks_run_in_scopes_of_their_own(serve, sqlite) -> None:
    def synchronous() -> str:
        return str(db.session.scalar(text("select 7")))

    async def asynchronous() -> str:
        return str(await db.async_session.scalar(text("select 8")))

    def fails() -> None:
        raise LookupError("the key is s3cret")

    app = FastAPI()
    app.add_middleware(DBSessionMiddleware, db_url=sqlite.url)
    checks = {"sync": synchronous, "async": asynchronous, "fails": fails, "says no": lambda: False}
    checks["returns one"] = lambda: asynchronous()
    app.include_router(health.router(checks=checks, timeout_s=DEADLINE_S))

    with client_of(serve, app) as client:
        ready = client.get("/readyz")
    db.dispose()

    assert ready.status_code == 503
    said = {check["check"]: (check["ok"], check["detail"]) for check in ready.json()["checks"]}
    assert said == {
        "database default": (True, ""),
        "sync": (True, "7"),
        "async": (True, "8"),
        "returns one": (True, "8"),
        "fails": (False, "LookupError"),
        "says no": (False, "RuntimeError"),
    }
    assert "s3cret" not in ready.text


def test_an_app_that_uses_only_async_sessions_opens_no_sync_pool(
    serve, postgresql, reports
) -> None:
    app = app_of(postgresql.async_url, reports)

    @app.get("/")
    async def read() -> int:
        found = await reports.async_session.scalar(text("select 1"))
        return int(found)

    with client_of(serve, app) as client:
        assert client.get("/").json() == 1
        assert client.get("/readyz").status_code == 200
        assert set(reports.pool_status()) <= {"async"}


def test_a_client_that_hangs_up_leaves_the_check_to_the_others(serve, sqlite, reports) -> None:
    running, release = threading.Event(), threading.Event()

    async def slow() -> str:
        running.set()
        await asyncio.to_thread(release.wait, DEADLINE_S)
        return "done"

    app = app_of(sqlite.url, reports, checks={"slow": slow}, timeout_s=DEADLINE_S)
    with client_of(serve, app) as client, ThreadPoolExecutor(1) as threads:
        with pytest.raises(httpx.ReadTimeout):
            client.get("/readyz", timeout=0.5)
        assert running.wait(DEADLINE_S)
        other = threads.submit(client.get, "/readyz")
        release.set()
        assert other.result(DEADLINE_S).status_code == 200
