"""One contestant: serves its app in process, and answers each `N` with seconds of CPU a request."""

import asyncio
import importlib
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parent)


def main() -> None:
    name, case, url, cpu = sys.argv[1:]
    warnings.simplefilter("ignore")
    os.sched_setaffinity(0, {int(cpu)})
    contestant = importlib.import_module(f"apps.{name}")
    loop = asyncio.new_event_loop()
    app = loop.run_until_complete(build(contestant, case, url))
    for line in sys.stdin:
        elapsed_s = loop.run_until_complete(serve(app, int(line)))
        print(elapsed_s / int(line), flush=True)


async def build(contestant: Any, case: str, url: str) -> Any:
    return contestant.build(case, url)


async def serve(app: Any, requests: int) -> float:
    """As uvicorn does it: each request in a task of its own, on a loop that also has a timer."""
    ticking = asyncio.create_task(tick())
    started_s = time.process_time()
    for _ in range(requests):
        await asyncio.create_task(request(app))
    elapsed_s = time.process_time() - started_s
    ticking.cancel()
    await asyncio.wait([ticking])
    return elapsed_s


async def tick() -> None:
    while True:
        await asyncio.sleep(0.1)


async def request(app: Any) -> None:
    sent: list[Any] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if sent[0]["status"] != 200:
        raise RuntimeError(f"{sent}")


if __name__ == "__main__":
    main()
