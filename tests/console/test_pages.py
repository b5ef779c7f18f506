"""The console in a real browser, beside a real scheduler: `fsa console`."""

from __future__ import annotations

import re
from pathlib import Path

from support.browser import Chromium, Viewer, address_of
from support.processes import Start
from support.shops import Shop
from support.waiting import wait_until

MAIN = r"""
    from typing import Literal

    @task(schedule="every 1s")
    def tick() -> int:
        "Count the seconds."
        return 7

    @task(schedule="every 1m")
    def prices_of_all_suppliers_are_fetched_and_compared_with_those_of_yesterday() -> None: ...

    @task(schedule="every 2s")
    def fails() -> None:
        "<script>alert(1)</script> [red]what it does[/red]"
        raise ValueError("<img src=x onerror=alert(2)> [red]no[/red] \x1b[31m \u202e")

    @task
    async def slow(context: TaskContext, *, kind: Literal["soft", "hard"] = "soft") -> str:
        with context.progress(total=10) as bar:
            bar.advance(4)
            await asyncio.sleep(3600)
        return kind

    @task
    def writes(n: int = 5) -> int:
        db.session.execute(INSERT, {"n": n})
        return n

    @task
    def login(user: str, *, api_token: str = "") -> str:
        return user
"""


def test_what_runs_is_seen_at_once_and_can_be_acted_on(
    small_shop: Shop, fsa_process: Start, browser: Chromium, tmp_path: Path
) -> None:
    small_shop.write(MAIN)
    scheduler = fsa_process("scheduler", "start")
    console = fsa_process("console", "--port", "0")
    here = address_of(console)
    scheduler.wait_for("Ctrl-C or SIGTERM")
    with browser.viewer() as viewer:
        check_now(viewer, here)
        run_id = check_running(viewer, here, small_shop)
        check_cancelling(viewer, here, small_shop, run_id)
        check_failures(viewer, here, small_shop)
        check_pausing(viewer, here, small_shop)
        check_death(viewer, here, scheduler)
    with browser.viewer(360, dark=True) as viewer:
        check_small_and_dark(viewer, here)
    with browser.viewer(360, scripts=False) as viewer:
        check_without_script(viewer, here, small_shop)
    console.stop()
    assert console.returncode == 0


def check_now(viewer: Viewer, here: str) -> None:
    page = viewer.page
    page.goto(here)
    # The page was loaded once: what comes is put in its place.
    page.evaluate("window.stays = 1")
    page.locator("#l-tick rect.s-succeeded").first.wait_for(state="attached")
    page.locator("#l-fails rect.s-failed").first.wait_for(state="attached")
    assert page.locator("#l-tick rect.s-coming").count() > 0
    assert page.locator(".now").count() == 1
    page.get_by_role("link", name="fails: failed").wait_for()
    assert re.search(r"\d+ succeeded", page.locator("#n-tick .sr").text_content() or "")
    assert page.locator("#failed").inner_text().count("ValueError") == 1
    assert page.evaluate("window.stays") == 1
    viewer.check_accessible()


def check_running(viewer: Viewer, here: str, shop: Shop) -> str:
    page = viewer.page
    page.goto(f"{here}task?name=slow")
    page.get_by_label("kind").select_option("hard")
    page.get_by_role("button", name="Run slow").dblclick()
    page.locator("h1 .s-running").wait_for()
    run_id = page.url.partition("id=")[2]
    page.get_by_text("4 of 10").first.wait_for()
    assert '"kind": "hard"' in page.locator("pre").first.inner_text()
    runs = shop.ledger("SELECT id, arguments, requested_by FROM fsa_run WHERE task = 'slow'")
    assert [(each[0], each[1]) for each in runs] == [(run_id, '{"kind": "hard"}')]
    assert "@" in runs[0][2]
    page.goto(here)
    page.locator(f"#w{run_id}").get_by_text("4 of 10").wait_for()
    return run_id


def check_cancelling(viewer: Viewer, here: str, shop: Shop, run_id: str) -> None:
    page = viewer.page
    page.goto(f"{here}run?id={run_id}")
    page.get_by_text("Cancel", exact=True).click()
    # What was opened stays open, and focus where it is, while the page is brought up to date.
    button = page.get_by_role("button", name="Cancel the run")
    button.focus()
    asked = page.locator("#asof").text_content()
    page.wait_for_function(
        "seen => document.getElementById('asof').textContent !== seen", arg=asked
    )
    assert button.is_visible()
    assert button.evaluate("node => node === document.activeElement")
    button.press("Enter")
    page.locator("h1 .s-cancelled").wait_for()
    page.get_by_role("button", name="Retry").click()
    page.wait_for_function("id => !location.search.endsWith(id)", arg=run_id)
    page.locator("h1 .s-running").wait_for()
    new_id = page.url.partition("id=")[2]
    assert ("slow", "running") in shop.runs()
    # All of a filter at once.
    page.goto(f"{here}runs?task=slow&status=running")
    page.get_by_text("Cancel all that are like this").click()
    page.get_by_role("button", name="Cancel them").click()
    page.get_by_text("1 of 1 runs").wait_for()
    page.goto(f"{here}run?id={new_id}")
    page.locator("h1 .s-cancelled").wait_for()


def check_failures(viewer: Viewer, here: str, shop: Shop) -> None:
    page = viewer.page
    page.goto(f"{here}runs?status=failed")
    page.locator("tbody tr").first.locator("a.id").click()
    page.get_by_text("In your code").wait_for()
    assert (
        "<img src=x onerror=alert(2)> [red]no[/red] \\x1b[31m \\u202e"
        in page.locator(".error").inner_text()
    )
    assert "main.py" in page.locator(".frames").inner_text()
    assert page.locator("img, .error script").count() == 0
    viewer.check_accessible()
    page.goto(f"{here}task?name=login")
    assert page.locator("input[name='arg.api_token']").count() == 0
    page.get_by_label("user").fill("<b>ann</b>")
    page.get_by_role("button", name="Run login").click()
    page.locator("h1 .s-succeeded").wait_for()
    assert "<b>ann</b>" in page.locator("pre").first.inner_text()
    page.goto(f"{here}task?name=writes")
    page.locator("input[name='arg.n']").fill("8")
    page.get_by_role("button", name="Dry run").click()
    page.locator("#changes").wait_for()
    assert page.locator("#changes tbody tr").inner_text().split() == ["written", "1", "0", "0"]
    assert shop.written() == []
    # Pages by key, the newest first, and none twice.
    page.goto(f"{here}runs")
    seen = page.locator("tbody a.id").all_inner_texts()
    assert len(set(seen)) == len(seen) > 5


def check_pausing(viewer: Viewer, here: str, shop: Shop) -> None:
    page = viewer.page
    page.goto(f"{here}task?name=tick")
    page.get_by_role("button", name="Pause").click()
    page.locator("h1 .s-paused").wait_for()
    assert shop.ledger("SELECT paused_ms > 0 FROM fsa_task WHERE name = 'tick'") == [(1,)]
    assert page.locator(".calendar rect.cell").count() >= 35
    viewer.check_accessible()
    page.get_by_role("button", name="Resume").click()
    page.locator("h1 .s-paused").wait_for(state="detached")


def check_death(viewer: Viewer, here: str, scheduler) -> None:
    page = viewer.page
    page.goto(f"{here}nodes")
    page.locator(".s-alive").wait_for()
    page.goto(f"{here}coming")
    assert page.locator("#not-kept").count() == 0
    page.goto(here)
    scheduler.stop()
    page.get_by_text("scheduler: none is alive").wait_for()
    for each in ("coming", "tasks"):
        page.goto(f"{here}{each}")
        assert "nothing of this runs" in page.locator("#not-kept").inner_text()
    page.goto(here)
    with page.expect_response(lambda response: response.status == 304):
        pass  # where nothing changes, nothing is sent


def check_small_and_dark(viewer: Viewer, here: str) -> None:
    page = viewer.page
    page.goto(here)
    for name in ["Runs", "Tasks", "Coming", "Queues", "Nodes", "Database", "Audit", "Now"]:
        page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
        page.wait_for_load_state()
        assert page.locator("nav [aria-current]").inner_text() == name
        box = page.locator("body").evaluate("node => [node.scrollWidth, node.clientWidth]")
        assert box[0] <= box[1], name
        viewer.check_accessible()


def check_without_script(viewer: Viewer, here: str, shop: Shop) -> None:
    page = viewer.page
    page.goto(here)
    page.get_by_role("navigation").get_by_role("link", name="Tasks").click()
    page.get_by_role("link", name="slow", exact=True).click()
    page.get_by_role("button", name="Run slow").click()
    page.locator("h1 .s-queued").wait_for()
    page.get_by_text("nobody is alive who executes runs").wait_for()
    page.locator("dd code", has_text="fsa worker start").wait_for()
    page.get_by_text("Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the run").click()
    page.locator("h1 .s-cancelled").wait_for()
    wait_until(lambda: ("slow", "cancelled") in shop.runs(), "the run is cancelled")
