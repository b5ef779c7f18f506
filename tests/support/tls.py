"""Certificates of an authority that nobody else trusts, and servers that speak TLS with them."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

#: Made for these tests, with keys that open nothing else. The server's name is localhost.
_FILES = {
    "authority.pem": """\
-----BEGIN CERTIFICATE-----
MIIBjzCCATWgAwIBAgIUZy+X5iMLHvK//bM5v/7Lo7Lv+hYwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYXV0aG9yaXR5MCAXDTI2MTEzMDExMjQ1MFoYDzIxMjYxMTA2
MTEyNDUwWjAUMRIwEAYDVQQDDAlhdXRob3JpdHkwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATHDXfdGiFMJaTwYvZloRZrmAD0eci3a+gpdlCrHmP3iIwy9RdQedJf
lPFBGRvgXt/ER72Qp7/TBli32mErcdRzo2MwYTAdBgNVHQ4EFgQUYGibju02rra2
mlOGIzshG7jNrGEwHwYDVR0jBBgwFoAUYGibju02rra2mlOGIzshG7jNrGEwDwYD
VR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAQYwCgYIKoZIzj0EAwIDSAAwRQIg
JXFhQd0oBKvq4v5HommjOkVUDoH6LbLYsciGCtkW2jcCIQCubGMy0HCSAmp0wkNE
C808rFRf0rWS5F3Wpjmewrn2Uw==
-----END CERTIFICATE-----
""",
    "other_authority.pem": """\
-----BEGIN CERTIFICATE-----
MIIBnzCCAUWgAwIBAgIUfpLWoN7d8ei/x7pWUXtmPW4HYMUwCgYIKoZIzj0EAwIw
HDEaMBgGA1UEAwwRYW5vdGhlciBhdXRob3JpdHkwIBcNMjYxMTMwMTEyNDUwWhgP
MjEyNjExMDYxMTI0NTBaMBwxGjAYBgNVBAMMEWFub3RoZXIgYXV0aG9yaXR5MFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEvSqrDw5WEO428j4VaypWnCnmdFsK4+g1
aVYMbEgIqGEosFqdCkvZnU1jqfEY15wWBfa3Icte1agDMDyI1mHBbaNjMGEwHQYD
VR0OBBYEFLjuejOc5I6Z3FASn7ndQlhe8n+mMB8GA1UdIwQYMBaAFLjuejOc5I6Z
3FASn7ndQlhe8n+mMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgEGMAoG
CCqGSM49BAMCA0gAMEUCIQDqn3jONGJi/ilLyqGJlIuwPzWwLt0Bw7llHjJ9vBEH
QQIgCtBT11rF/SbLFAdoCm+DmgXl0exErT2kNPgbMP2Brc8=
-----END CERTIFICATE-----
""",
    "server.pem": """\
-----BEGIN CERTIFICATE-----
MIIBqTCCAU+gAwIBAgIUMsXOVafXWUlo5LNHrDtSG+gwVlwwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYXV0aG9yaXR5MCAXDTI2MTEzMDExMjQ1MVoYDzIxMjYxMTA2
MTEyNDUxWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQwQy95lngNz8maBKm34Aqpi4BmdEOIxFoZ0o45vsd6ItYWU6s5ngN2
C6fjvPPryftMtXRs1z3WCT2iSmA8Eb+Xo30wezAUBgNVHREEDTALgglsb2NhbGhv
c3QwHwYDVR0jBBgwFoAUYGibju02rra2mlOGIzshG7jNrGEwHQYDVR0OBBYEFJFM
kaZ7x3Uvv8ooNuPG0aFV3MbZMA4GA1UdDwEB/wQEAwIHgDATBgNVHSUEDDAKBggr
BgEFBQcDATAKBggqhkjOPQQDAgNIADBFAiBOwq7AggTVs2BFObKrwzzRqfvegqek
h4Hihn/TNrMPTAIhAK8moKk89h3BFFkZb/MFOjvYCgyKZwXF49diKvTjyd+j
-----END CERTIFICATE-----
""",
    "server.key": """\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIC/XCgO2V3+F+yYItRZq4q9ihjhjBkhUtR2VzXxTiwReoAoGCCqGSM49
AwEHoUQDQgAEMEMveZZ4Dc/JmgSpt+AKqYuAZnRDiMRaGdKOOb7HeiLWFlOrOZ4D
dgun47zz68n7TLV0bNc91gk9okpgPBG/lw==
-----END EC PRIVATE KEY-----
""",
    "client.pem": """\
-----BEGIN CERTIFICATE-----
MIIBjjCCATSgAwIBAgIUMsXOVafXWUlo5LNHrDtSG+gwVl0wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYXV0aG9yaXR5MCAXDTI2MTEzMDExMjQ1M1oYDzIxMjYxMTA2
MTEyNDUzWjAPMQ0wCwYDVQQDDARzaG9wMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcD
QgAEiVOqltbDQshHwi/7DYSU0MDXLoTvdS9fTEy0tXEtJJyqsSAEQToNy6a7GsBn
tKjFz+XegW/HxEv4Y/HTQsXHNKNnMGUwHwYDVR0jBBgwFoAUYGibju02rra2mlOG
IzshG7jNrGEwHQYDVR0OBBYEFPWcPaqHEpbxuAFEhPph6h/lopVSMA4GA1UdDwEB
/wQEAwIHgDATBgNVHSUEDDAKBggrBgEFBQcDAjAKBggqhkjOPQQDAgNIADBFAiAE
z2pQMT2/LVLDW00QZ0pubd45KoQ7oBHv7bVQMcgoaAIhAOgiYjXhXSYTIjIA0pYB
yw/K+HA9sMarXh/WYFd87lTw
-----END CERTIFICATE-----
""",
    "client.key": """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAgAr7NARLNMjwICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEELslnLoqrO/czDC+P+C9Ah8EgZDg
oAy5sF+pNW6HJUvluC6TOSCFoqpgVRKN5cSeINCf8rvrORhLZVckP7h1tm1p677u
VwKipQpOCB2I/GCQTaRBHn2npPY+drh0RlvDHX8D4bTN9FOIUaOsu54AsIL8WcW/
RjpnrzN4+U8CRnBWFlnzrUidT7FDAP/f4bjbOjH5iams2mdEx+AvNwyaKcxjSeQ=
-----END ENCRYPTED PRIVATE KEY-----
""",
}
#: Of the client's key, and the user that its certificate names.
KEY_PASSWORD = "sesame"

_SSL_REQUEST = (80877103).to_bytes(4, "big")
_GSS_REQUEST = (80877104).to_bytes(4, "big")


class Certificates:
    """Their files in a directory."""

    def __init__(self, directory: Path) -> None:
        for name, text in _FILES.items():
            file = directory / name
            file.touch(mode=0o600)
            file.write_text(text)
        self.authority = str(directory / "authority.pem")
        self.other_authority = str(directory / "other_authority.pem")
        self.server = str(directory / "server.pem")
        self.server_key = str(directory / "server.key")
        self.client = str(directory / "client.pem")
        self.client_key = str(directory / "client.key")

    def mariadb_options(self) -> list[str]:
        """For `private_server`: a MariaDB that speaks TLS."""
        return [
            f"--ssl-ca={self.authority}",
            f"--ssl-cert={self.server}",
            f"--ssl-key={self.server_key}",
        ]


class TLSProxy:
    """In front of a PostgreSQL server that has no TLS; `seen` says how each client came.

    That is "plain", "refused" (the handshake failed), or TLS's version.
    """

    def __init__(self, target: tuple[str, int], certificates: Certificates) -> None:
        self._target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.server, certificates.server_key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.seen: list[str] = []
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            how = "plain"
            while (first := client.recv(8))[4:] in (_SSL_REQUEST, _GSS_REQUEST):
                if first[4:] == _GSS_REQUEST:
                    client.sendall(b"N")
                    continue
                client.sendall(b"S")
                try:
                    client = self._context.wrap_socket(client, server_side=True)
                except OSError:
                    self.seen.append("refused")
                    return
                self._sockets.append(client)
                how = str(client.version())
            if not first:
                return
            self.seen.append(how)
            server = socket.create_connection(self._target)
            self._sockets.append(server)
            server.sendall(first)
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()
            _copy(client, server)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def tls_proxy(target: tuple[str, int], certificates: Certificates) -> Iterator[TLSProxy]:
    proxy = TLSProxy(target, certificates)
    try:
        yield proxy
    finally:
        proxy.close()
