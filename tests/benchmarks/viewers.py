"""What memory the console takes while ten viewers look at a large ledger that changes."""

import argparse
import asyncio
import gc
import os
import random
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from sqlalchemy import create_engine, text

from console import APPS, NAMESPACE, PAGES, RUNS, TASKS, TRACEBACK

ASKS_S = 2.0  # as console.js does
CHANGES_S = 5.0
MOVES_S = 30.0
STATUSES = ("failed", "missed", "skipped", "succeeded", "running", "queued")
# What a viewer looks at who stays: half of them do.
STAY = ("", "?lanes=all", "?span=24h", "?lanes=all&span=24h", "tasks")


def changes(url: str, stopped: threading.Event) -> None:
    """Add runs as quickly as the tasks of the ledger are due."""
    engine = create_engine(url)
    number = 1_000_000_000
    while not stopped.wait(CHANGES_S):
        more = round(TASKS * CHANGES_S / 180)
        given = {
            "namespace": NAMESPACE,
            "tasks": TASKS,
            "now": int(time.time() * 1000),
            "first": number,
            "last": number + more - 1,
            "runs": number + more,
            "traceback": TRACEBACK,
        }
        number += more
        with engine.begin() as connection:
            connection.execute(text(f"{RUNS} ON CONFLICT DO NOTHING"), given)
            connection.execute(
                text(
                    "UPDATE fsa_task SET watermark_ms = :now, last_success_ms = :now "
                    "WHERE namespace = :namespace AND name = :name"
                ),
                {**given, "name": f"task{number % TASKS}"},
            )


def walk(seed: int, runs: list[str]) -> Iterator[str]:
    """The pages that somebody looks at who goes from one to the next."""
    chance = random.Random(seed)
    while True:
        page = chance.choice([*PAGES.values(), "task?name=task{task}", "runs?task=task{task}"])
        if chance.random() < 0.2:
            page = f"runs?status={chance.choice(STATUSES)}&since={chance.randrange(1, 99)}h"
        yield page.format(run=chance.choice(runs), task=chance.randrange(TASKS))


async def look(base: str, number: int, runs: list[str], counts: Counter[int]) -> None:
    """Look for ever, as console.js does."""
    walked = walk(number, runs)
    async with httpx.AsyncClient(base_url=base, timeout=None) as client:
        while True:
            address = STAY[number] if number < len(STAY) else next(walked)
            etag, until_s = "", time.monotonic() + MOVES_S
            while time.monotonic() < until_s:
                begun_s = time.monotonic()
                headers = {"If-None-Match": etag} if etag else {}
                answer = await client.get(address, headers=headers)
                counts[answer.status_code] += 1
                if answer.status_code not in (200, 304):
                    raise RuntimeError(f"{address}: {answer.status_code}")
                etag = answer.headers["ETag"]
                await asyncio.sleep(max(begun_s + ASKS_S - time.monotonic(), 0))


def memory_mb(pid: int, field: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


async def measure(url: str, process: "subprocess.Popen[bytes]", port: int, minutes: int) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        some = text("SELECT id FROM fsa_run ORDER BY scheduled_ms DESC LIMIT 2000")
        runs = list(connection.scalars(some))
    engine.dispose()
    counts: Counter[int] = Counter()
    base = f"http://127.0.0.1:{port}/ops/"
    async with asyncio.TaskGroup() as group:
        viewers = [group.create_task(look(base, each, runs, counts)) for each in range(10)]
        for minute in range(minutes + 1):
            answers = " ".join(f"{n} x {status}" for status, n in sorted(counts.items()))
            rss, peak = memory_mb(process.pid, "VmRSS"), memory_mb(process.pid, "VmHWM")
            print(f"minute {minute:3}: {rss:6.1f} MB (most {peak:.1f})  {answers}", flush=True)
            if minute < minutes:
                await asyncio.sleep(60)
        for each in viewers:
            each.cancel()


def report(minutes: list[int]) -> None:
    """Print what has grown between these minutes, by the line that asked for it."""
    begun_s, before = time.monotonic(), None
    for minute in minutes:
        time.sleep(max(begun_s + 60 * minute - time.monotonic(), 0))
        gc.collect()
        now, (size, _) = tracemalloc.take_snapshot(), tracemalloc.get_traced_memory()
        print(f"-- minute {minute}: {size / 1e6:.2f} MB in Python", flush=True)
        for each in now.compare_to(before, "lineno")[:20] if before is not None else ():
            print(f"   {each}", flush=True)
        before = now


def serve(port: int, minutes: list[int]) -> None:
    if minutes:
        tracemalloc.start()
        threading.Thread(target=report, args=(minutes,), daemon=True).start()
    uvicorn.run("console_app:app", port=port, log_level="warning", access_log=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgresql", metavar="URL", required=True)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--trace", type=int, nargs="*", default=[], metavar="MINUTE")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.update(URL=options.postgresql, FSA_NAMESPACE=NAMESPACE)
    sys.path.insert(0, str(APPS))
    if options.serve is not None:
        serve(options.serve, options.trace)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, *sys.argv, "--serve", str(port)]) as process:
        stopped = threading.Event()
        try:
            while process.poll() is None:
                with socket.socket() as asked:
                    if asked.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            threading.Thread(target=changes, args=(options.postgresql, stopped)).start()
            asyncio.run(measure(options.postgresql, process, port, options.minutes))
        finally:
            stopped.set()
            process.terminate()


if __name__ == "__main__":
    main()
