"""A task's ping URL reaches no cloud's metadata service, whatever it, a name or a redirect says."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fsa_cli.processes import notifications

REFUSED = [
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.170.2/v2/credentials",
    "http://[fe80::1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[fd00:ec2::254]/",
    "http://[fd20:ce::254]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[::169.254.169.254]/",
    "http://169.254.169.254./",
    "http://100.100.100.200/",
    "http://2852039166/",
    "http://0xA9FEA9FE/",
    "http://169.254.43518/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "https://169.254.169.254/",
]


class Site:
    """Counts what it is asked, and redirects where it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.redirect = ""
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                site.asked.append(self.path)
                self.send_response(302 if site.redirect else 200)
                if site.redirect:
                    self.send_header("Location", site.redirect)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a socket is connected to: a machine in a cloud would reach it."""
    reached: list[Any] = []
    connect = socket.socket.connect

    def note(self: socket.socket, address: Any) -> None:
        reached.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    return reached


@pytest.mark.parametrize("url", REFUSED)
def test_metadata_is_not_asked(
    url: str, site: Site, connected: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    notifications._post(url, "")
    site.redirect = url
    notifications._post(site.url, "")

    assert {address[0] for address in connected} <= {"127.0.0.1"}
    assert site.asked == ["/"] or site.asked == [""]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all("metadata service" in message for message in messages)


def test_a_name_that_means_a_link_local_address_is_not_asked(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is looked at is whom the socket has reached, not what the name meant before."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(socket.socket, "getpeername", lambda self: ("169.254.169.254", 80))

    notifications._post(site.url, "")

    assert site.asked == []
    assert "link-local" in caplog.text


def test_other_pings_and_redirects_go_on(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    other = Site()
    site.redirect = other.url + "/there"
    notifications._post(site.url + "/start?rid=1", "")
    other.close()

    assert (site.asked, other.asked) == (["/start?rid=1"], ["/there"])
    assert caplog.records == []


def test_digits_of_another_script_are_read_as_a_resolver_reads_them() -> None:
    with pytest.raises(PermissionError):
        notifications._check_url("http://\uff11\uff16\uff19.254.169.254/")
