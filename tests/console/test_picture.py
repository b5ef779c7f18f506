"""README's picture of *Now*, of a real run: FSA_TEST_PICTURE=examples/console.png pytest ..."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from support.browser import Chromium, address_of
from support.processes import Start
from support.shops import Shop
from support.waiting import wait_until

PICTURE = os.environ.get("FSA_TEST_PICTURE")
MAIN = """
    import itertools
    currencies = itertools.cycle(["EUR", "EUR", "GBP"])

    @task(schedule="* * * * *")
    def count_orders() -> int:
        return 4711

    @task(schedule="*/2 * * * *")
    def import_prices() -> str:
        time.sleep(12)
        return "312 prices"

    @task(schedule="every 45s")
    def sync_stock() -> None:
        time.sleep(30)

    @task(schedule="every 50s")
    def nightly_report() -> float:
        return {"EUR": 1.0}[next(currencies)]

    @task(schedule="*/2 * * * *", timeout_s=15)
    def export_orders() -> None:
        time.sleep(3600)

    @task(schedule="every 100s")
    def rebuild_index(context: TaskContext) -> None:
        with context.progress(total=60) as bar:
            for _ in range(60):
                time.sleep(1.1)
                bar.advance()

    @task(schedule="*/5 * * * *")
    def purge_sessions() -> None: ...

    @task(schedule="0 3 1 * *", timezone="Europe/Berlin")
    def close_books() -> None: ...

    @task
    def send_mail(to: str) -> None: ...
"""


@pytest.mark.skipif(PICTURE is None, reason="FSA_TEST_PICTURE names the file to write; 5 minutes")
def test_the_picture_shows_what_has_really_run(
    small_shop: Shop, fsa_process: Start, browser: Chromium
) -> None:
    assert PICTURE is not None
    small_shop.write(MAIN)
    shop = {"FSA_NAMESPACE": "shop", "FSA_LEDGER_URL": "sqlite:///shop-ledger.db"}
    started = time.monotonic()
    first = fsa_process("scheduler", "start", env=shop)
    wait_until(lambda: time.monotonic() - started > 110, "it has run", within_s=200)
    first.kill()
    wait_until(lambda: time.monotonic() - started > 240, "nobody was there", within_s=200)
    fsa_process("scheduler", "start", env=shop)
    with browser.viewer(1180) as viewer:
        wait_until(lambda: time.monotonic() - started > 290, "it goes on", within_s=200)
        console = fsa_process("console", "--port", "0", env=shop)
        page = viewer.page
        page.set_viewport_size({"width": 1180, "height": 738})
        page.goto(f"{address_of(console)}?span=15m")
        page.locator("#l-count_orders rect.s-missed").first.wait_for(state="attached")
        page.locator("#running tbody tr").nth(1).wait_for(timeout=120_000)
        page.screenshot(path=Path(PICTURE))
