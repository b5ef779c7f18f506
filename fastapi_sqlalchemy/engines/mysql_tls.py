"""TLS of PyMySQL's words for the other drivers of MySQL, which want an `ssl.SSLContext`."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["PYMYSQL_SSL_PARAMETERS", "mysql_tls", "tls_of_option_file"]

PYMYSQL_SSL_PARAMETERS = frozenset(
    ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_key", "ssl_cipher", "ssl_check_hostname")
)
_OPTION_FILE_TLS = ("ca", "capath", "cert", "key", "password", "cipher")
# 1 and 2 as in ssl.VerifyMode.
_YES = frozenset(("true", "1", "2", "yes", "on", "required", "optional"))
_NO = frozenset(("false", "0", "no", "off", "none"))


def tls_of_option_file(parameters: Mapping[str, Any]) -> dict[str, str]:
    """What PyMySQL and asyncmy read of TLS in a `read_default_file`, and aiomysql does not."""
    file = parameters.get("read_default_file")
    if not file:
        return {}
    from pymysql.optionfile import Parser

    parser = Parser()
    parser.read(Path(file).expanduser())
    group = parameters.get("read_default_group") or "client"
    names = [name for name in _OPTION_FILE_TLS if parser.has_option(group, f"ssl-{name}")]
    return {f"ssl_{name}": parser.get(group, f"ssl-{name}") for name in names}


def mysql_tls(tls: Mapping[str, Any]) -> ssl.SSLContext:
    """The context that PyMySQL makes of the same parameters (`Connection._create_ssl_ctx`).

    Never less strict, and stricter in two cases: a CA alone among the `connect_args` is verified,
    and `ssl_verify_identity` means that, without a CA too.
    """
    context = ssl.create_default_context(cafile=tls.get("ssl_ca"), capath=tls.get("ssl_capath"))
    # What MySQL signs for itself does not pass Python 3.13's strictness.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    has_ca = bool(tls.get("ssl_ca") or tls.get("ssl_capath"))
    by_default = has_ca and not {"ssl_verify_cert", "ssl_verify_identity"} & tls.keys()
    identified = _is_true(tls.get("ssl_verify_identity"), False)
    asked = tls.get("ssl_verify_mode", tls.get("ssl_verify_cert"))
    verified = identified or _is_true(asked, has_ca)
    context.check_hostname = verified and (
        identified or _is_true(tls.get("ssl_check_hostname"), by_default)
    )
    context.verify_mode = ssl.CERT_REQUIRED if verified else ssl.CERT_NONE
    if tls.get("ssl_cert"):
        password = tls.get("ssl_password", tls.get("ssl_key_password"))
        context.load_cert_chain(tls["ssl_cert"], keyfile=tls.get("ssl_key"), password=password)
    if tls.get("ssl_cipher"):
        context.set_ciphers(tls["ssl_cipher"])
    return context


def _is_true(value: Any, default: bool) -> bool:
    """A server always has a certificate: what is optional is verified too."""
    word = str(value).lower()
    if value is None or word not in _YES | _NO:
        return default
    return word in _YES
