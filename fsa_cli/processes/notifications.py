"""The `on_failure` functions of a task and of all, and its ping URL. No run waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import inspect
import ipaddress
import logging
import queue
import socket
import threading
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from fsa_cli.ledger.records import RunOutcome
from fsa_cli.processes.events import NodeListener
from fsa_cli.runner.report import brief
from fsa_cli.runner.run import Run, RunResult
from fsa_cli.tasks.registry import registry
from fsa_cli.terminal.escaping import escape_record
from fsa_cli.terminal.masking import mask

__all__ = ["Notifications"]

logger = logging.getLogger("fsa.scheduler")
logger.addFilter(escape_record)

_WAITING = 1000
_TIMEOUT_S = 10.0
_LONG_S = 30.0
# What answers without being link-local: AWS, Google and Scaleway over IPv6, Alibaba, Azure, Oracle.
_METADATA_ADDRESSES = {
    *("fd00:ec2::254", "fd20:ce::254", "fd00:42::42"),
    *("100.100.100.200", "168.63.129.16", "192.0.0.192"),
}
# Whose last 32 bits are an IPv4 address: mapped, of a translator (NAT64), and the form of old.
_WITH_IPV4 = [ipaddress.ip_network(each) for each in ("::ffff:0:0/96", "64:ff9b::/96", "::/96")]
_METADATA_NAMES = {"metadata.google.internal", "metadata.goog", "metadata"}


class _Call(NamedTuple):
    name: str
    function: Callable[[], object]


class Notifications(NodeListener):
    """Calls them one after another, in threads of their own; drops what is too many.

    What a function raises is logged, and that it takes long: the next ones do not wait for it. The
    pings follow https://healthchecks.io/docs/http_api/: `/start`, the URL itself for a success,
    `/fail`, with the run's id as `rid`.
    """

    name = "notifications"
    alive = True  # its threads come with the first call, and no run waits for them

    def __init__(self) -> None:
        self._queues: dict[str, queue.Queue[_Call | None]] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    def run_started(self, run: Run) -> None:
        if run.task.ping is not None:
            self._ping(run, "/start")

    def run_finished(self, run: Run, result: RunResult | None, outcome: RunOutcome | None) -> None:
        """Notify that a run has ended; not yet if another attempt follows."""
        if result is None or outcome is None or outcome.retry_in_ms is not None:
            return
        has_failed = result.status not in ("succeeded", "discarded")
        if run.task.ping is not None:
            text = "" if result.succeeded else brief(result)
            self._ping(run, "/fail" if has_failed else "", text)
        if has_failed:
            for hook in (*run.task.on_failure, *registry.failure_hooks):
                name = f"the on_failure function {getattr(hook, '__qualname__', hook)}"
                self._put("failures", _Call(name, partial(_call, hook, result)))

    def start(self) -> None: ...

    def quiesce(self) -> None: ...

    def stop(self, within_s: float = 1.0) -> None:
        """Make the calls that are left, for *within_s* at most; what is dropped is logged."""
        for waiting in self._queues.values():
            with contextlib.suppress(queue.Full):
                waiting.put_nowait(None)
        for name, thread in self._threads.items():
            thread.join(within_s)
            left = sum(call is not None for call in self._queues[name].queue)
            if left := left + thread.is_alive():
                logger.warning("the process ends before %d %s have been told", left, name)

    def _ping(self, run: Run, path: str, text: str = "") -> None:
        assert run.task.ping is not None
        base, _, query = run.task.ping.partition("?")
        rid = f"{run.run_id[:8]}-{run.run_id[8:12]}-{run.run_id[12:16]}-{run.run_id[16:20]}"
        url = f"{base.rstrip('/')}{path}?rid={rid}-{run.run_id[20:]}{'&' if query else ''}{query}"
        self._put("pings", _Call("a ping", partial(_post, url, mask(text))))

    def _put(self, name: str, call: _Call) -> None:
        with self._lock:
            waiting = self._queues.get(name)
            if waiting is None:
                waiting = self._queues[name] = queue.Queue(_WAITING)
                self._threads[name] = thread = threading.Thread(
                    target=self._serve, args=(waiting,), name=f"fsa {name}", daemon=True
                )
                thread.start()
        try:
            waiting.put_nowait(call)
        except queue.Full:
            logger.warning("more than %d %s are waiting: one is left out", _WAITING, name)

    def _serve(self, waiting: queue.Queue[_Call | None]) -> None:
        while (call := waiting.get()) is not None:
            name = threading.current_thread().name
            thread = threading.Thread(target=_make, args=(call,), name=f"{name} call", daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:  # the system gives no more threads, for now
                logger.warning("%s is not called: %s", call.name, exc)
                continue
            thread.join(_LONG_S)
            if thread.is_alive():
                told = "%s has not returned after %g s: the next one does not wait for it"
                logger.warning(told, call.name, _LONG_S)


def _make(call: _Call) -> None:
    try:
        call.function()
    except BaseException:  # sys.exit is no reason to tell nobody
        logger.exception("%s failed", call.name)


def _call(hook: Callable[[RunResult], object], result: RunResult) -> None:
    returned = hook(result)
    if inspect.isawaitable(returned):
        asyncio.run(_wait_for(returned))


async def _wait_for(awaitable: Awaitable[object]) -> None:
    await awaitable


class _Connection(http.client.HTTPConnection):
    """Looks whom it has reached before it sends anything: the name may mean another host by now."""

    def connect(self) -> None:
        super().connect()
        _check_address(self.sock.getpeername()[0])


class _TLSConnection(http.client.HTTPSConnection, _Connection):
    """The same; what is looked at comes before TLS."""


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Connection, request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_TLSConnection, request)


class _Opener(urllib.request.OpenerDirector):
    """HTTP and HTTPS, through the proxy of the environment; each hop of a redirect is looked at."""

    def __init__(self) -> None:
        super().__init__()
        for handler in (
            urllib.request.ProxyHandler(),
            _HTTPHandler(),
            _HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            _RedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            self.add_handler(handler)


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request: Any, *arguments: Any) -> Any:
        following = super().redirect_request(request, *arguments)
        if following is not None:
            _check_url(following.full_url)
        return following


def _check_url(url: str) -> None:
    """What a proxy would reach, as far as the URL itself says."""
    # As whoever looks the name up reads it: digits of another script, a dot at the end.
    host = unicodedata.normalize("NFKC", urllib.parse.urlsplit(url).hostname or "").rstrip(".")
    if host.lower() in _METADATA_NAMES:
        raise PermissionError(f"{host} is a cloud's metadata service")
    with contextlib.suppress(OSError):  # `169.254.43518`, `0xA9FEA9FE`: as the C library reads them
        host = socket.inet_ntoa(socket.inet_aton(host))
    with contextlib.suppress(ValueError):
        _check_address(str(ipaddress.ip_address(host)))


def _check_address(address: str) -> None:
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "sixtofour", None) or ip
    if any(ip in network for network in _WITH_IPV4):
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip.is_link_local or str(ip) in _METADATA_ADDRESSES:
        raise PermissionError(f"{address} is link-local, where a cloud's metadata service answers")


def _post(url: str, text: str) -> None:
    request = urllib.request.Request(url, data=text.encode(), method="POST")
    try:
        _check_url(url)
        _Opener().open(request, timeout=_TIMEOUT_S).close()
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as exc:
        logger.warning("%s could not be pinged: %s", mask(url), exc)
