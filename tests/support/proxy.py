"""A TCP proxy in front of a server: it can fall silent, and it can drop every connection."""

import contextlib
import random
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import make_url


class Proxy:
    """Forwards to `target`, until `silent` is set: then it keeps what it gets.

    `silent_from` may be bytes: it falls silent by itself when a client sends them.
    `lose_answer_to` may be bytes too: when a client sends them, the server gets them, and the
    connection is gone before its answer comes; this happens once. While `away` is set, nobody is
    let in.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.silent = threading.Event()
        self.away = threading.Event()
        self.silent_from: bytes | None = None
        self.lose_answer_to: bytes | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def url(self, url: str) -> str:
        """`url`, through this proxy."""
        parsed = make_url(url).set(host="127.0.0.1", port=self.port)
        return parsed.render_as_string(hide_password=False)

    def drop_all(self) -> None:
        """Reset every connection there is; new ones are served."""
        self.drop_some(1.0)

    def drop_some(self, share: float) -> int:
        """Reset each connection with this probability; how many were."""
        open_pairs = [pair for pair in self._pairs if pair[0].fileno() != -1]
        dropped = [pair for pair in open_pairs if random.random() < share]
        self._pairs = [pair for pair in open_pairs if pair not in dropped]
        for pair in dropped:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        return len(dropped)

    def close(self) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_all()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.away.is_set():
                client.close()
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:  # the server is away
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append((client, server))
            thread = threading.Thread(target=self._forward, args=(client, server), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    try:
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                        if self.silent_from is not None and self.silent_from in data:
                            self.silent.set()
                        if not data:
                            return
                        if not self.silent.is_set():
                            key.data.sendall(data)
                        lost = self.lose_answer_to
                        if key.data is server and lost is not None and lost in data:
                            self.lose_answer_to = None
                            server.recv(65536)
                            return
                    except OSError:
                        return


@contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    """A proxy in front of the server that `url` names."""
    parsed = make_url(url)
    default_port = {"postgresql": 5432, "mysql": 3306}[parsed.get_backend_name()]
    proxy = Proxy((parsed.host or "127.0.0.1", parsed.port or default_port))
    try:
        yield proxy
    finally:
        proxy.close()
