"""`browser`: the machine's own Chromium, driven by Playwright, that reaches this machine alone.

Where there is none (Debian's package `chromium`, or a path in `FSA_TEST_CHROMIUM`), the test is
skipped; with `chromium` named in `FSA_TEST_REQUIRE`, it fails.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from support import databases
from support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page, Route

    from support.processes import Process

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The page asks every two seconds; a test does not wait for that.
_FASTER = """
(() => { const later = window.setTimeout; window.setTimeout = (f, ms) => later(f, ms / 10); })();
"""


class Viewer:
    """A window of the browser, and what went wrong in it."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.complaints: list[str] = []
        page.add_init_script(_FASTER)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.route("**/*", self._routed)

    def check_accessible(self) -> None:
        """No rule of axe's is violated by what is shown now."""
        from axe_playwright_python.sync_playwright import (  # type: ignore[import-untyped]
            Axe,
        )

        found = Axe().run(self.page)
        assert found.violations_count == 0, found.generate_report()

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):  # also what the content security policy refuses
            self.complaints.append(f"{message.type}: {message.text}")

    def _routed(self, route: "Route") -> None:
        if urlsplit(route.request.url).hostname == "127.0.0.1":
            route.continue_()
        else:
            self.complaints.append(f"another host: {route.request.url}")
            route.abort()


class Window:
    """A window that Playwright does not know: to those that it does, it says that they are seen."""

    def __init__(self, session: "CDPSession", target: str) -> None:
        self._session = session
        self._target = target
        self._answers: dict[int, dict[str, Any]] = {}
        session.on("Target.receivedMessageFromTarget", self._received)
        self._id = session.send("Target.attachToTarget", {"targetId": target})["sessionId"]

    def go(self, url: str) -> None:
        self._ask("Page.addScriptToEvaluateOnNewDocument", source=_FASTER)
        self._ask("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript in its page."""
        found = self._ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        return found["result"].get("value")

    def show(self, state: str) -> None:
        """`minimized`, or `normal` again; its page is told."""
        window = self._session.send("Browser.getWindowForTarget", {"targetId": self._target})
        bounds = {"windowId": window["windowId"], "bounds": {"windowState": state}}
        self._session.send("Browser.setWindowBounds", bounds)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = len(self._answers) + 1
        message = json.dumps({"id": number, "method": method, "params": parameters})
        self._session.send(
            "Target.sendMessageToTarget", {"sessionId": self._id, "message": message}
        )
        return wait_until(lambda: self._answer(number), f"the answer to {method}")

    def _answer(self, number: int) -> dict[str, Any] | None:
        self._session.send("Target.getTargets")  # events come while something is asked
        return self._answers.get(number)

    def _received(self, event: dict[str, Any]) -> None:
        message = json.loads(event["message"])
        if "id" in message:
            self._answers[message["id"]] = message["result"]


class Chromium:
    """The browser; each viewer has a profile of its own."""

    def __init__(self, browser: "Browser") -> None:
        self._browser = browser

    @contextmanager
    def viewer(
        self, width: int = 1280, *, dark: bool = False, scripts: bool = True
    ) -> Iterator[Viewer]:
        """A window, closed at the end of the block. Nothing may have gone wrong in it."""
        context = self._browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
        )
        context.set_default_timeout(20_000)
        viewer = Viewer(context.new_page())
        try:
            yield viewer
            assert viewer.complaints == []
        except Exception as exc:
            text = viewer.page.locator("body").inner_text()
            exc.add_note(f"{viewer.page.url} {viewer.complaints}\n{text[:3000]}")
            raise
        finally:
            context.close()

    @contextmanager
    def window(self, url: str) -> Iterator[Window]:
        """A window of its own, which may be minimized."""
        session = self._browser.new_browser_cdp_session()
        context = session.send("Target.createBrowserContext")["browserContextId"]
        target = session.send(
            "Target.createTarget",
            {"url": "about:blank", "browserContextId": context, "newWindow": True},
        )
        try:
            window = Window(session, target["targetId"])
            window.go(url)
            yield window
        finally:
            session.send("Target.disposeBrowserContext", {"browserContextId": context})


def address_of(console: "Process") -> str:
    """Where `fsa console` is, once it is there."""
    console.wait_for("the console is at")
    match = re.search(r"the console is at (\S+),", console.stderr)
    assert match
    return match[1]


def _program() -> str | None:
    return os.environ.get("FSA_TEST_CHROMIUM") or next(
        (found for name in _PROGRAMS if (found := shutil.which(name))), None
    )


@pytest.fixture
def browser() -> Iterator[Chromium]:
    """A headless Chromium."""
    program = _program()
    if program is None:
        databases.skip("chromium", "there is no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=[*_ARGUMENTS])
        try:
            databases.found["chromium"] = f"{started.version} ({program})"
            yield Chromium(started)
        finally:
            started.close()
