"""Several viewers in real browsers while processes are killed, and a window that nobody sees."""

from __future__ import annotations

from pathlib import Path

import httpx

from support.browser import Chromium
from support.processes import Run, Start
from support.shops import Shop
from support.waiting import wait_until

MAIN = """
    from datetime import date
    from fsa_cli import console

    asked = []

    @app.middleware("http")
    async def count(request, call_next):
        if request.url.path == "/asked":
            from starlette.responses import PlainTextResponse
            return PlainTextResponse(str(len(asked)))
        if request.url.path == "/ops/":
            asked.append(request.url.path)
        return await call_next(request)

    app.include_router(console.router(access=lambda: "operate"), prefix="/ops")

    @task(schedule="every 5s")
    def send_reminders(context: TaskContext) -> str:
        time.sleep(0.5)
        return "12 reminders"

    @task(schedule="every 20s")
    def sync_with_warehouse() -> None:
        raise ConnectionError("warehouse.example: no route to host")

    @task(schedule="every 2m")
    def refresh_prices() -> int:
        return 4711

    @task
    async def nightly_report(context: TaskContext) -> None:
        with context.progress(total=100) as bar:
            bar.advance(38)
            await asyncio.sleep(3600)

    @task(schedule="0 3 * * *", timezone="Europe/Berlin")
    def vacuum() -> None: ...
"""


def test_two_viewers_see_a_replica_die_and_the_other_go_on(
    small_shop: Shop, fsa_process: Start, serve_process, browser: Chromium, tmp_path: Path
) -> None:
    small_shop.write(MAIN)
    short = {"FSA_LEASE_S": "3"}
    first = fsa_process("scheduler", "start", env=short)
    first.wait_for("Ctrl-C or SIGTERM")
    with serve_process("main:app", cwd=tmp_path) as served:
        here = f"{served.base_url}/ops/"
        with browser.viewer() as one, browser.viewer(360, dark=True) as other:
            pages = one.page, other.page
            for page in pages:
                page.goto(here)
                page.evaluate("window.stays = 1")
            one.page.goto(f"{here}task?name=nightly_report")
            one.page.get_by_role("button", name="Run nightly_report").click()
            one.page.locator("h1 .s-running").wait_for()
            run_id = one.page.url.partition("id=")[2]
            one.page.goto(here)
            for page in pages:
                page.locator(f"#w{run_id}").get_by_text("38 of 100").wait_for()
                page.locator("#l-sync_with_warehouse rect.s-failed").first.wait_for(
                    state="attached"
                )
            one.page.evaluate("window.stays = 1")

            second = fsa_process("scheduler", "start", env=short)
            second.wait_for("Ctrl-C or SIGTERM")
            for page in pages:
                page.locator("#nodes").get_by_text(f":{second.pid}").wait_for()
            # As one that was there before, it does not take the other one's place.
            there = f"pid = {second.pid} AND lease_until_ms - started_ms > 6000"
            wait_until(
                lambda: small_shop.ledger(f"SELECT 1 FROM fsa_node WHERE {there}"),
                "it has been there for longer than a lease",
            )
            first.kill()
            done = small_shop.runs().count(("send_reminders", "succeeded"))
            for page in pages:
                page.get_by_text("scheduler: one has died").first.wait_for()
                page.locator("#failed .s-interrupted").first.wait_for()
                page.locator(f"#w{run_id}").wait_for(state="detached")
                page.locator("#nodes").get_by_text(f":{first.pid}").wait_for(state="detached")
                page.locator("#nodes").get_by_text(f":{second.pid}").wait_for()
                assert page.evaluate("window.stays") == 1
            wait_until(
                lambda: small_shop.runs().count(("send_reminders", "succeeded")) > done,
                "the other replica goes on",
            )
            one.page.goto(f"{here}run?id={run_id}")
            one.page.locator("h1 .s-interrupted").wait_for()


def test_a_window_that_nobody_sees_asks_nothing(
    small_shop: Shop, fsa: Run, serve_process, browser: Chromium, tmp_path: Path
) -> None:
    small_shop.write(MAIN)
    assert fsa("scheduler", "init").returncode == 0
    with serve_process("main:app", cwd=tmp_path) as served:

        def asked() -> int:
            return int(httpx.get(f"{served.base_url}/asked").text)

        with browser.window(f"{served.base_url}/ops/") as window:
            wait_until(lambda: asked() > 2, "it asks while it is seen")
            window.show("minimized")
            wait_until(lambda: window.evaluate("document.hidden") is True, "it is hidden")
            before = asked()
            # A page that is seen would ask ten times meanwhile, and one in the background twice.
            window.evaluate("new Promise(done => setTimeout(done, 20000))")
            assert asked() == before
            window.show("normal")
            wait_until(lambda: asked() > before, "it asks when it is seen again")
