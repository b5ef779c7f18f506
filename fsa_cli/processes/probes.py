"""`/livez`, `/readyz` and `/metrics` of a scheduler, for Kubernetes and Prometheus.

Whoever reaches the port may hold connections open: each has few seconds and few bytes for its
request, and where too many are open the oldest is closed for the newest, which may be the probe.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from typing import Any, cast

from fsa_cli.exceptions import ConfigurationError
from fsa_cli.processes.node import Node
from fsa_cli.version import VERSION

__all__ = ["serving"]

_MAX_CONNECTIONS = 32
_MAX_HEAD_BYTES = 8 * 1024
_REQUEST_S = 3.0
_LOOK_S = 0.5


@contextlib.contextmanager
def serving(node: Node, address: str, port: int) -> Iterator[int]:
    """Serve them while inside; the port, which the system chooses where *port* is 0.

    Raises:
        ConfigurationError: The port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_S  # of one read or write

        def setup(self) -> None:
            super().setup()
            self.rfile = cast(BufferedReader, _Limited(self.rfile))

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/livez":
                self._answer(200 if node.alive else 503, "alive" if node.alive else "stuck")
            elif path == "/readyz":
                reason = node.unready
                self._answer(503 if reason else 200, reason or "ready")
            elif path == "/metrics":
                self._answer(200, metrics(node), "text/plain; version=0.0.4; charset=utf-8")
            else:
                self._answer(404, "/livez, /readyz and /metrics are here")

        def _answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
            body = f"{text.rstrip()}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(b"" if self.command == "HEAD" else body)

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            """Log nothing: a probe comes every few seconds."""

    try:
        server = _Server((address, port), Handler)
    except (OSError, OverflowError) as exc:
        raise ConfigurationError(
            f"the probes cannot be served on {address}:{port}: {exc}",
            hint="--port takes another port, --host another address",
        ) from exc
    threading.Thread(
        target=server.serve_forever, args=(_LOOK_S,), name="fsa probes", daemon=True
    ).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    """At most `_MAX_CONNECTIONS` at a time, each for `_REQUEST_S` seconds at most."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._lock = threading.Lock()
        self._since_s: dict[Any, float] = {}  # in the order in which they came
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._since_s[request] = time.monotonic()
            excess = len(self._since_s) - _MAX_CONNECTIONS
            self._end(list(itertools.islice(self._since_s, max(excess, 0))))
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._since_s.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called twice a second and after each connection."""
        before_s = time.monotonic() - _REQUEST_S
        with self._lock:
            self._end([each for each, since_s in self._since_s.items() if since_s < before_s])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone, or was sent away, is no news."""

    def _end(self, requests: list[Any]) -> None:
        for each in requests:
            del self._since_s[each]
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # its thread closes it


class _Limited:
    """A request's first bytes; who sends more than a probe does is sent away."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = _MAX_HEAD_BYTES

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self._file.readline(
            min(size, self._left + 1) if size >= 0 else self._left + 1
        )
        self._left -= len(line)
        if self._left < 0:
            raise ConnectionAbortedError("the request's head is too long")
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def metrics(node: Node) -> str:
    """Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/."""
    lines = ["# TYPE fsa_runs_total counter"]
    lines += [
        f'fsa_runs_total{{status="{status}"}} {count}'
        for status, count in sorted(node.counts.items())
    ]
    pool = node.lifecycle.pool
    gauges: dict[str, float] = {
        "fsa_running": len(pool.running),
        "fsa_waiting": pool.waiting + node.backlog,
        "fsa_lease_trusted": int(node.context.lease.trusted),
        "fsa_ledger_reachable": int(not node.context.outage.is_open),
        "fsa_timer_late_seconds": node.late_ms / 1000,
        "fsa_clock_skew_seconds": round(node.context.clock.skew_s, 3),
    }
    for name, value in gauges.items():
        lines += [f"# TYPE {name} gauge", f"{name} {value:g}"]
    return "\n".join([*lines, "# TYPE fsa_info gauge", f'fsa_info{{version="{VERSION}"}} 1'])
