"""What requests cost through a real uvicorn with many clients: how many a second, and p99."""

import argparse
import asyncio
import importlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import ENVIRONMENTS, peer_python

HERE = Path(__file__).parent
PEERS = {
    "fastapi-async-sqlalchemy": ("async",),
    "fastapi-sqla": ("sync", "async"),
    "advanced-alchemy": ("sync", "async"),
}
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


@dataclass
class Contestant:
    """One app in one case, served by a uvicorn of its own."""

    name: str
    app: str
    case: str
    python: str = sys.executable
    rates: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    def start(self, url: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [self.python, __file__, "--serve", self.app, self.case, url, str(self.port)]
        )

    async def round(self, clients: int, duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        each = await asyncio.gather(*(self._ask(end_s) for _ in range(clients)))
        latencies_s = [latency_s for one in each for latency_s in one]
        self.rates.append(len(latencies_s) / duration_s)
        self.latencies_s += latencies_s

    async def _ask(self, end_s: float) -> list[float]:
        reader, writer = await self._connect()
        latencies_s = []
        while (begun_s := time.monotonic()) < end_s:
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            latencies_s.append(time.monotonic() - begun_s)
        writer.close()
        await writer.wait_closed()
        return latencies_s

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionRefusedError:
                if self._process.poll() is not None:
                    raise
                await asyncio.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


async def measure(title: str, contestants: list[Contestant], options: argparse.Namespace) -> None:
    """Run the contestants in turns and print each beside the first."""
    for contestant in contestants:
        contestant.start(options.url)
        await contestant.round(options.clients, 1)
        contestant.rates.clear()
        contestant.latencies_s.clear()
    for _ in range(options.rounds):
        for contestant in contestants:
            await contestant.round(options.clients, options.duration_s)
    print(f"\n{title}, {options.clients} clients")
    baseline = statistics.median(contestants[0].rates)
    for contestant in contestants:
        contestant.stop()
        rate = statistics.median(contestant.rates)
        cuts_s = statistics.quantiles(contestant.latencies_s, n=100)
        print(
            f"  {contestant.name:44} {rate:7.0f} a second  {rate / baseline:5.2f} x"
            f"   median {cuts_s[49] * 1e3:6.1f} ms   p99 {cuts_s[98] * 1e3:6.1f} ms"
        )


def serve(app: str, case: str, url: str, port: str) -> None:
    """Serve one contestant's app until SIGTERM."""
    import uvicorn

    sys.path[0] = str(HERE)
    warnings.simplefilter("ignore")
    contestant: Any = importlib.import_module(f"apps.{app}")
    uvicorn.run(contestant.build(case, url), port=int(port), log_level="warning", access_log=False)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration-s", type=float, default=3)
    parser.add_argument("--peers", action="store_true", help="measure the peers too")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--postgresql", metavar="URL", dest="url", help="instead of SQLite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.url = options.url or f"sqlite:///{folder}/benchmark.db"
        for case, by_hand in (
            ("sync", "Depends(get_db), commits after it answered"),
            ("async", "async with in the route"),
        ):
            contestants = [
                Contestant(by_hand, "depends", case),
                Contestant("this library", "ours", case),
                Contestant("this library, commit_on_exit", "ours_committing", case),
            ]
            for peer, served in PEERS.items():
                if options.peers and case in served:
                    app = peer.replace("-", "_")
                    python = peer_python(app, options.environments)
                    contestants.append(Contestant(peer, app, case, python))
            asyncio.run(measure(f"{case.title()} select", contestants, options))


if __name__ == "__main__":
    main()
