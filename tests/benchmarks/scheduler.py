"""What the run ledger costs, beside APScheduler alone and the same bodies without a ledger."""

import argparse
import json
import math
import os
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, inspect, make_url, text

FSA = str(Path(sysconfig.get_path("scripts"), "fsa"))
APPS = Path(__file__).parent / "apps"
TABLES = ("written", "bare", "apscheduler_jobs")


@contextmanager
def database(url: str | None) -> Iterator[str]:
    """The URL of a database with an empty table `written`: the given one, or a SQLite file."""
    with tempfile.TemporaryDirectory() as folder:
        if url is None:
            url = f"sqlite:///{folder}/app.db"
            with sqlite3.connect(f"{folder}/app.db") as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        engine = create_engine(url)
        with engine.begin() as connection:
            ours = [name for name in inspect(engine).get_table_names() if name.startswith("fsa_")]
            for table in (*TABLES, *ours):
                connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
            connection.execute(text("CREATE TABLE written (n INTEGER)"))
            connection.execute(text("CREATE TABLE bare (n INTEGER)"))
        engine.dispose()
        yield url


def environment(url: str, folder: str, **more: object) -> dict[str, str]:
    told = {"URL": url, "FSA_STATE_DIR": folder, "FSA_NAMESPACE": "bench", **more}
    return {**os.environ, **{name: str(value) for name, value in told.items()}}


def replica(environ: dict[str, str], app: str = "due") -> "subprocess.Popen[str]":
    argv = [FSA, "-q", "--app", f"{app}:app", "scheduler", "start"]
    return subprocess.Popen(
        argv, cwd=APPS, env=environ, stdout=subprocess.PIPE, text=True, stderr=sys.stderr
    )


def answer(process: "subprocess.Popen[str]", number: int = signal.SIGTERM) -> list[float]:
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    return [float(each) for each in json.loads(out.splitlines()[-1])]


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(math.ceil(len(ordered) * share), len(ordered)) - 1] if ordered else math.nan


def due(url: str, kind: str, *, count: int = 1000, replicas: int = 1) -> list[list[float]]:
    """How late each run began, of so many due in one instant, for each replica."""
    with tempfile.TemporaryDirectory() as folder:
        at = math.ceil(time.time()) + 4 + 2 * replicas
        environ = environment(url, folder, AT=at, COUNT=count, KIND=kind)
        processes = [replica(environ) for _ in range(replicas)]
        engine = create_engine(url)
        deadline = at + 60
        while time.time() < deadline:
            time.sleep(0.5)
            if time.time() < at + 2:
                continue
            if _ended(url, engine) >= count:
                break
        engine.dispose()
        return [answer(process) for process in processes]


def _ended(url: str, engine: Any) -> int:
    sql = "SELECT COUNT(*) FROM fsa_run WHERE status NOT IN ('queued', 'running')"
    if url.startswith("sqlite"):
        file = make_url(url).database or ""
        with sqlite3.connect(file.replace("app.db", "app-ledger.db"), timeout=10) as connection:
            return int(connection.execute(sql).fetchone()[0])
    with engine.connect() as connection:
        return int(connection.execute(text(sql)).scalar())


def raw(url: str, count: int = 1000) -> list[float]:
    at = math.ceil(time.time()) + 15
    environ = {**os.environ, "URL": url, "AT": str(at), "COUNT": str(count)}
    script = str(APPS / "raw_apscheduler.py")
    done = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True)
    return [float(each) for each in json.loads(done.stdout.splitlines()[-1])]


def bare(url: str, count: int = 1000) -> list[float]:
    environ = {**os.environ, "URL": url, "COUNT": str(count)}
    script = str(APPS / "bare_threads.py")
    done = subprocess.run(
        [sys.executable, script], env=environ, capture_output=True, text=True, check=True
    )
    return [float(each) for each in json.loads(done.stdout.splitlines()[-1])]


def commits(url: str, count: int = 150) -> float:
    """How long so many commits of one row take, one after the other, in milliseconds."""
    engine = create_engine(url)
    with engine.connect() as connection:
        began = time.perf_counter()
        for _ in range(count):
            connection.execute(text("INSERT INTO bare (n) VALUES (1)"))
            connection.commit()
        took = (time.perf_counter() - began) * 1000
    engine.dispose()
    return took


def one_instant(url: str | None, rounds: int) -> None:
    name = "SQLite" if url is None else make_url(url).get_backend_name()
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for title, measured in (
            ("empty, ledger: p99", lambda u: percentile(due(u, "empty")[0], 0.99)),
            ("empty, raw APScheduler and its job store: p99", lambda u: percentile(raw(u), 0.99)),
            ("150 bare commits of one row", commits),
            ("write a row, ledger: p99", lambda u: percentile(due(u, "write")[0], 0.99)),
            ("write a row, same threads, no ledger: p99", lambda u: percentile(bare(u), 0.99)),
        ):
            with database(url) as place:
                found.setdefault(title, []).append(measured(place))
    print(f"\n1,000 runs due in one instant on {name}, ms, median of {rounds}")
    for title, values in found.items():
        print(f"  {title:<48} {statistics.median(values):>8.0f}   {[round(v) for v in values]}")
    if url is not None:
        twice = 2 * statistics.median(found["150 bare commits of one row"])
        print(f"  {'empty, ledger: at most':<48} {max(200.0, twice):>8.0f}")


def three_replicas(url: str) -> None:
    with database(url) as place:
        shares = [len(each) for each in due(place, "empty", replicas=3)]
    least, most = min(shares), max(shares)
    ratio = f"{most / least:.1f} : 1" if least else "one got none"
    print(f"\nthree replicas share 1,000 runs due in one instant: {shares} ({ratio})")


def ten_thousand(url: str | None, seconds: int) -> None:
    """Registered 10,000 schedules: start-up, CPU when none is due, and when five a second are."""
    name = "SQLite" if url is None else make_url(url).get_backend_name()
    with database(url) as place:
        started_s, idle, _ = _registered(place, seconds, at=time.time() + 86_400)
        print(f"\n10,000 schedules on {name}: start-up {started_s:.1f} s, idle CPU {idle:.2%}")
    with database(url) as place:
        _, busy, late_ms = _registered(place, seconds, at=math.ceil(time.time()) + 5)
        late = f"p50 {percentile(late_ms, 0.5):.0f} ms, p99 {percentile(late_ms, 0.99):.0f} ms"
        print(f"  with five single runs a second: CPU {busy:.2%}; start of {len(late_ms)}: {late}")


def _registered(place: str, seconds: int, *, at: float) -> tuple[float, float, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        process = replica(environment(place, folder, COUNT=10_000, AT=at, SPREAD=0.2))
        while not list(Path(folder).glob("*/heartbeat")):
            time.sleep(0.02)
        started_s = time.time() - began
        time.sleep(min(max(at - time.time(), 0), 10) + 3)
        before, since = _cpu_s(process.pid), time.time()
        time.sleep(seconds)
        used = (_cpu_s(process.pid) - before) / (time.time() - since)
        return started_s, used, answer(process)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stops(url: str | None) -> None:
    with database(url) as place, tempfile.TemporaryDirectory() as folder:
        process = replica(environment(place, folder, COUNT=10, EVERY="every 1s"))
        time.sleep(5)
        began = time.perf_counter()
        process.terminate()
        process.communicate(timeout=60)
        took_ms = (time.perf_counter() - began) * 1000
    print(f"\nSIGTERM to exit {process.returncode} with idle tasks: {took_ms:.0f} ms")


def memory(url: str | None, runs: int) -> None:
    """Resident memory while so many runs go by."""
    with database(url) as place, tempfile.TemporaryDirectory() as folder:
        process = replica(environment(place, folder, COUNT=400, EVERY="every 1s"))
        time.sleep(20)
        sizes = []
        for _ in range(8):
            time.sleep(runs / 400 / 8)
            status = Path(f"/proc/{process.pid}/status").read_text()
            sizes.append(int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) // 1024)
        made = len(answer(process))
    print(f"\nmemory over {made:,} runs, MiB: {sizes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgresql", metavar="URL", help="a database whose tables may go")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle-s", type=int, default=30, help="how long to watch 10,000 schedules")
    parser.add_argument("--memory-runs", type=int, default=0, help="100,000 takes five minutes")
    given = parser.parse_args()
    for url in [None, *([given.postgresql] if given.postgresql else [])]:
        one_instant(url, given.rounds)
        ten_thousand(url, given.idle_s)
        stops(url)
    if given.postgresql:
        three_replicas(given.postgresql)
    if given.memory_runs:
        memory(given.postgresql, given.memory_runs)


if __name__ == "__main__":
    main()
