"""`/livez`, `/readyz` and `/metrics` of a scheduler, for Kubernetes and Prometheus."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fsa_cli.exceptions import ConfigurationError
from fsa_cli.processes.node import Node
from fsa_cli.version import VERSION

__all__ = ["serving"]


@contextlib.contextmanager
def serving(node: Node, address: str, port: int) -> Iterator[int]:
    """Serve them while inside; the port, which the system chooses where *port* is 0.

    Raises:
        ConfigurationError: The port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
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
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Log nothing: a probe comes every few seconds."""

    try:
        server = ThreadingHTTPServer((address, port), Handler)
    except (OSError, OverflowError) as exc:
        raise ConfigurationError(
            f"the probes cannot be served on {address}:{port}: {exc}",
            hint="--port takes another port, --host another address",
        ) from exc
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="fsa probes", daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


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
