"""Who may see the console, and do what: closed unless the app says otherwise."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request

__all__ = ["ACTIONS", "Access", "access_of", "is_from_here", "is_same_origin"]

#: What one can do, by the name that an `access` gives.
ACTIONS = ("run", "retry", "cancel", "pause", "resume")

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# What proxies and content delivery networks add: any one is enough. No browser sends a header of
# its own whose name begins with x-.
_OF_PROXIES = (
    *(b"x-", b"forwarded", b"via", b"client-ip", b"true-client-ip", b"traceparent", b"cdn-loop"),
    *(b"cf-", b"fly-", b"fastly-", b"incap-", b"akamai-", b"ali-", b"proxy-"),
)
# Of the name in a header that somebody has sent.
_NAME_LENGTH = 200


@dataclass(frozen=True)
class Access:
    """What a person may do, and their name for the audit.

    Args:
        actions: Some of `ACTIONS`; none: to look only.
        name: None: they are called `console`.
    """

    actions: frozenset[str] = frozenset()
    name: str | None = None

    def may(self, action: str) -> bool:
        return action in self.actions


def access_of(given: Any) -> Access | None:
    """The access that a dependency of the app's has given.

    Args:
        given: None, "view", "operate", a set of actions, an `Access`; or a pair of one of these and
            the person's name.

    Returns:
        None: they may not even look.

    Raises:
        TypeError: It is something else: nobody is let in by a mistake.
    """
    if given is None:
        return None
    if isinstance(given, Access):
        return Access(_actions(given.actions), _name(given.name))
    if isinstance(given, tuple):
        if len(given) != 2:
            raise TypeError("console: access gave a tuple that is no (what, the person's name)")
        found = access_of(given[0])
        return None if found is None else Access(found.actions, _name(given[1]) or found.name)
    return Access(_actions(given))


def _actions(given: Any) -> frozenset[str]:
    if isinstance(given, str):
        named = {"view": (), "operate": ACTIONS}.get(given)
        if named is not None:
            return frozenset(named)
    elif isinstance(given, Collection) and not isinstance(given, bytes | Mapping):
        actions = frozenset(given)
        if actions <= frozenset(ACTIONS):
            return actions
    raise TypeError(
        f"console: access gave {str(given)[:200]!r}, expected None, 'view', 'operate', some of "
        f"{', '.join(ACTIONS)}, or a pair of one of these and the person's name"
    )


def _name(given: Any) -> str | None:
    """The name as the audit can keep it: no database has a NUL in a text."""
    if not (given is None or isinstance(given, str)):
        raise TypeError(f"console: access gave {str(given)[:200]!r} for the person's name")
    return given and given.replace("\0", "")[:_NAME_LENGTH]


def is_from_here(request: Request) -> bool:
    """Whether a request comes from this very machine, and through no proxy.

    A page of another site may have its own name mean 127.0.0.1 (DNS rebinding): so the request has
    to name this machine as well.
    """
    if any(name.startswith(_OF_PROXIES) for name, _ in request.scope["headers"]):
        return False
    if request.scope.get("http_version") == "1.0":  # which proxies speak, and no browser
        return False
    client = request.client
    if client is None or not _is_loopback(client.host):
        return False
    return _host_of(request) in _LOOPBACK_NAMES


def is_same_origin(request: Request) -> bool:
    """Whether a request that changes something was sent by a page of the console itself.

    Browsers send `Origin` with each POST, and `Sec-Fetch-Site` where the site is secure; no script
    can change them.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    origins = request.headers.getlist("origin")
    hosts = request.headers.getlist("host")
    if len(origins) != 1 or len(hosts) != 1:
        return False
    try:
        origin = urlsplit(origins[0])
    except ValueError:
        return False
    return origin.scheme in ("http", "https") and origin.netloc.lower() == hosts[0].lower()


def _host_of(request: Request) -> str | None:
    hosts = request.headers.getlist("host")
    if len(hosts) != 1:
        return None
    try:
        return urlsplit(f"//{hosts[0]}").hostname
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
